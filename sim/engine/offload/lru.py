"""The least recently used leaves first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Container, Iterator

from sim.engine.offload.unpinned import first_unpinned


class Lru:
    """A `Replacement`."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._names: OrderedDict[int, None] = OrderedDict()  # the least recently used first

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: int) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[int]:
        return iter(self._names)

    def touch(self, name: int) -> None:
        if name in self._names:
            self._names.move_to_end(name)

    def insert(self, name: int, pinned: Container[int]) -> int | None:
        leaving = None
        if len(self._names) == self._capacity:
            leaving = first_unpinned(self._names, pinned)
            assert leaving is not None
            del self._names[leaving]
        self._names[name] = None
        return leaving
