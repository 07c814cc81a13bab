"""Look-ups outside the measured grid that are no part of a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncounted(counts: Counter[str]) -> Iterator[None]:
    """What is counted meanwhile is forgotten: whoever asks runs no step."""
    before = counts.copy()
    yield
    counts.clear()
    counts.update(before)
