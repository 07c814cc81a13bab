"""Time that spans cover, counted once where they overlap."""

from __future__ import annotations

import numpy as np


def union_length(start: np.ndarray, end: np.ndarray) -> float:
    """Seconds of the union of spans, (spans,) each; 0 of none."""
    if not len(start):
        return 0.0
    by_start = np.argsort(start, kind="stable")
    start, end = start[by_start], end[by_start]
    covered = np.concatenate(([-np.inf], np.maximum.accumulate(end)[:-1]))
    return float(np.maximum(0.0, end - np.maximum(start, covered)).sum())
