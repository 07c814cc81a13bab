"""Spans of time: that of a run, and what several cover."""

from __future__ import annotations

import numpy as np
import polars as pl


def run_span(requests: pl.DataFrame) -> tuple[float, float] | None:
    """From the first arrival to the last finish; None where nothing arrived or finished."""
    first, last = requests["arrival"].min(), requests["finish"].max()
    return None if first is None or last is None else (float(first), float(last))  # type: ignore[arg-type]


def union_length(start: np.ndarray, end: np.ndarray) -> float:
    """Seconds of the union of spans, (spans,) each: counted once where they overlap; 0 of none."""
    if not len(start):
        return 0.0
    by_start = np.argsort(start, kind="stable")
    start, end = start[by_start], end[by_start]
    covered = np.concatenate(([-np.inf], np.maximum.accumulate(end)[:-1]))
    return float(np.maximum(0.0, end - np.maximum(start, covered)).sum())
