"""Which replicas have which prefix ids: one look-up an id, for all replicas together.

The replicas that have an id are the bits of one number, so those that have the whole start of a prompt are found by
as many `&` as the longest match has ids, however many replicas there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heappop, heappush
from itertools import compress

from sim.fleet.load import least

_NOBODY = 0
_DIGITS = bytes.maketrans(b"01", b"\0\1")


class PrefixHolders:
    """A replica has a place, as in `Load`, and for as long as it is there a bit of its own."""

    def __init__(self) -> None:
        self._holders: dict[int, int] = {}  # prefix id → bits
        self._bits: dict[int, int] = {}  # replica → the number of its bit
        self._unused: list[int] = []  # heap of numbers given back
        self._places: list[int] = []  # by number of the bit; of one given back any place
        self._bits_by_place: list[int] = []
        self._everybody = 0  # bits

    def members(self, replicas: Sequence[int]) -> None:
        """From now on these, by place. One that leaves has been made to give up its ids."""
        for replica in self._bits.keys() - set(replicas):
            heappush(self._unused, self._bits.pop(replica))
        for replica in replicas:
            if replica not in self._bits:
                self._bits[replica] = heappop(self._unused) if self._unused else len(self._bits)
        self._bits_by_place = [self._bits[replica] for replica in replicas]
        self._places = [0] * (len(replicas) + len(self._unused))
        for place, bit in enumerate(self._bits_by_place):
            self._places[bit] = place
        self._everybody = sum(1 << bit for bit in self._bits_by_place)

    def add(self, replica: int, *prefix_ids: int) -> None:
        holders, bit = self._holders, 1 << self._bits[replica]
        for prefix_id in prefix_ids:
            holders[prefix_id] = holders.get(prefix_id, _NOBODY) | bit

    def remove(self, replica: int, *prefix_ids: int) -> None:
        """It had them."""
        holders, bit = self._holders, 1 << self._bits[replica]
        for prefix_id in prefix_ids:
            if left := holders[prefix_id] ^ bit:
                holders[prefix_id] = left
            else:
                del holders[prefix_id]

    def least_of_longest(self, ids: Sequence[int], values: Sequence[float]) -> tuple[int, int]:
        """How many of the first ids the best replica has, and of the places of all that have as many the one with the
        least of `values`, the first of equals."""
        count, holders = self._with_longest(ids)
        place = least(values)
        if holders >> self._bits_by_place[place] & 1:  # of a start that many have likely, and then nobody is visited
            return count, place
        places = self._places_of(holders)
        return count, places[least([values[place] for place in places])]

    def matches(self, ids: Sequence[int]) -> list[int]:
        """How many of the first ids each replica has, by place."""
        out = [0] * len(self._bits_by_place)
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

    def _with_longest(self, ids: Sequence[int]) -> tuple[int, int]:
        """How many of the first ids the best replica has, and the bits of all that have as many."""
        holders, count, get = self._everybody, 0, self._holders.get
        for prefix_id in ids:
            more = holders & get(prefix_id, _NOBODY)
            if not more:
                break
            holders = more
            count += 1
        return count, holders

    def _places_of(self, holders: int) -> list[int]:
        if holders == self._everybody:
            return list(range(len(self._bits_by_place)))
        # Bit by bit, but in C: most replicas may have the start of a prompt that is asked for often.
        bits = f"{holders:b}"[::-1].encode().translate(_DIGITS)
        return sorted(compress(self._places, bits))
