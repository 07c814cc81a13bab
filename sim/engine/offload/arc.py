"""Adaptive replacement (Megiddo and Modha, ARC: A Self-Tuning, Low Overhead Replacement Cache, FAST 2003, figure 4).

What was used once and what was used again are two lists, and each remembers the names of whom it lost. A name that
comes back from either memory moves the `target` size of the first list towards what would have kept it.

In the paper a request of a page that is absent brings it in at once. Here a prompt that misses brings nothing in: its
blocks do, when they are written. So `touch` is the paper's case I alone, and `insert` its cases II to IV.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Container, Iterator
from itertools import chain

from sim.engine.offload.unpinned import first_unpinned


class Arc:
    """A `Replacement`. The names are the paper's, but for `target`, its p."""

    def __init__(self, capacity: int) -> None:
        self.target = 0.0
        self._capacity = capacity
        # In the tier, used once and used again; names alone of those that left. The least recently used first.
        self._t1: OrderedDict[int, None] = OrderedDict()
        self._t2: OrderedDict[int, None] = OrderedDict()
        self._b1: OrderedDict[int, None] = OrderedDict()
        self._b2: OrderedDict[int, None] = OrderedDict()
        # Of which lists all were found pinned, while many come in at once (`Tier.make_place`) and are pinned too.
        self._asked: Container[int] = ()
        self._all_pinned: set[bool] = set()

    def __len__(self) -> int:
        return len(self._t1) + len(self._t2)

    def __contains__(self, name: int) -> bool:
        return name in self._t1 or name in self._t2

    def __iter__(self) -> Iterator[int]:
        return chain(self._t1, self._t2)

    def touch(self, name: int) -> None:
        if name in self._t1:
            del self._t1[name]
            self._t2[name] = None
        elif name in self._t2:
            self._t2.move_to_end(name)

    def insert(self, name: int, pinned: Container[int]) -> int | None:
        t1, b1, b2, capacity = self._t1, self._b1, self._b2, self._capacity
        if name in b1:
            self.target = min(capacity, self.target + max(len(b2) / len(b1), 1.0))
            leaving = self._replace(pinned, of_second=False)
            del b1[name]
            self._t2[name] = None
            return leaving
        if name in b2:
            self.target = max(0.0, self.target - max(len(b1) / len(b2), 1.0))
            leaving = self._replace(pinned, of_second=True)
            del b2[name]
            self._t2[name] = None
            return leaving
        leaving = None
        if len(t1) + len(b1) == capacity:
            if len(t1) < capacity:
                b1.popitem(last=False)
                leaving = self._replace(pinned, of_second=False)
            else:
                leaving = first_unpinned(t1, pinned)
                assert leaving is not None
                del t1[leaving]
        elif len(t1) + len(b1) + len(self._t2) + len(b2) >= capacity:
            if len(t1) + len(b1) + len(self._t2) + len(b2) == 2 * capacity:
                b2.popitem(last=False)
            leaving = self._replace(pinned, of_second=False)
        t1[name] = None
        return leaving

    def _replace(self, pinned: Container[int], *, of_second: bool) -> int | None:
        """The paper's REPLACE; `of_second`: the name that comes in is in the second list's memory."""
        if len(self) < self._capacity:
            return None
        size = len(self._t1)
        from_first = size >= 1 and (size > self.target or (of_second and size == self.target))
        if pinned is not self._asked:
            self._asked, self._all_pinned = pinned, set()
        for first in (from_first, not from_first):  # the other list where all of the one are pinned
            if first in self._all_pinned:
                continue
            names, memory = (self._t1, self._b1) if first else (self._t2, self._b2)
            leaving = first_unpinned(names, pinned)
            if leaving is not None:
                del names[leaving]
                memory[leaving] = None
                return leaving
            if names:
                self._all_pinned.add(first)
        raise AssertionError("everybody is pinned")
