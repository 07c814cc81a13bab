"""Which replicas have which prefix ids: one look-up an id, for all replicas together.

The replicas that have an id are the bits of one number, so those that have the whole start of a prompt are found by
as many `&` as the longest match has ids, however many replicas there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heappop, heappush

_NOBODY = 0


class PrefixHolders:
    """A replica has a place, as in `Load`, and for as long as it is there a bit of its own."""

    def __init__(self) -> None:
        self._holders: dict[int, int] = {}  # prefix id → bits
        self._bits: dict[int, int] = {}  # replica → the number of its bit
        self._unused: list[int] = []  # heap of numbers given back
        self._places: dict[int, int] = {}  # number of a bit → place
        self._everybody = 0  # bits

    def members(self, replicas: Sequence[int]) -> None:
        """From now on these, by place. One that leaves has been made to give up its ids."""
        for replica in self._bits.keys() - set(replicas):
            heappush(self._unused, self._bits.pop(replica))
        for replica in replicas:
            if replica not in self._bits:
                self._bits[replica] = heappop(self._unused) if self._unused else len(self._bits)
        self._places = {self._bits[replica]: place for place, replica in enumerate(replicas)}
        self._everybody = sum(1 << bit for bit in self._places)

    def add(self, replica: int, prefix_id: int) -> None:
        self._holders[prefix_id] = self._holders.get(prefix_id, _NOBODY) | 1 << self._bits[replica]

    def remove(self, replica: int, prefix_id: int) -> None:
        """It had it."""
        left = self._holders[prefix_id] & ~(1 << self._bits[replica])
        if left:
            self._holders[prefix_id] = left
        else:
            del self._holders[prefix_id]

    def longest(self, ids: Sequence[int]) -> tuple[int, list[int]]:
        """How many of the first ids the best replica has, and the places of all that have as many."""
        holders, count, get = self._everybody, 0, self._holders.get
        for prefix_id in ids:
            more = holders & get(prefix_id, _NOBODY)
            if not more:
                break
            holders = more
            count += 1
        return count, self._places_of(holders)

    def matches(self, ids: Sequence[int]) -> list[int]:
        """How many of the first ids each replica has, by place."""
        out = [0] * len(self._places)
        holders, get = self._everybody, self._holders.get
        for count, prefix_id in enumerate(ids):
            more = holders & get(prefix_id, _NOBODY)
            if more != holders:
                for place in self._places_of(holders ^ more):
                    out[place] = count
                holders = more
                if not holders:
                    return out
        for place in self._places_of(holders):
            out[place] = len(ids)
        return out

    def _places_of(self, holders: int) -> list[int]:
        if holders == self._everybody:
            return list(range(len(self._places)))
        out, places = [], self._places
        while holders:
            lowest = holders & -holders
            out.append(places[lowest.bit_length() - 1])
            holders ^= lowest
        out.sort()
        return out
