"""Who is first to leave, but for those whom a copy reads or writes."""

from __future__ import annotations

from collections.abc import Container, Iterable


def first_unpinned(names: Iterable[int], pinned: Container[int]) -> int | None:
    return next((name for name in names if name not in pinned), None)
