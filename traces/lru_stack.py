"""LRU caches of many sizes in one pass over chain ids (after Mattson et al., 1970, "Evaluation techniques for storage
hierarchies": what a larger LRU cache holds includes what a smaller one holds).

All blocks lie in one stack, the last used on top; a cache of C blocks holds the topmost C. A request moves its blocks
to the top, its first block uppermost. Since ids are chains, a block was never used without all before it: so the blocks
that a request finds again fall into a few runs, each left together by one earlier request, and the depth of a whole run
is known from how many blocks every later request has left. No block is visited by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


def are_chains(ids: Ints, lengths: Ints) -> bool:
    """Whether each id (numbers from 0) always stands behind the same one, so that it has one place in its chain."""
    before = np.empty_like(ids)
    before[1:] = ids[:-1]
    begin = (np.cumsum(lengths) - lengths)[lengths > 0]
    before[begin] = -1
    last_seen = np.empty(int(ids.max(initial=-1)) + 1, dtype=np.int64)
    last_seen[ids] = before
    return bool((last_seen[ids] == before).all() and (before != ids).all())


def stack_hits(ids: Ints, lengths: Ints, looked_up: Ints, capacities: Sequence[int]) -> Ints:
    """Blocks that each request finds, shape (requests, capacities).

    `ids` are all requests' chains (numbers from 0) end to end, `lengths` how many each request has, of which it looks
    up the first `looked_up` before all of them move to the top.
    """
    limits = np.asarray(capacities, dtype=np.int64)
    hits = np.zeros((len(lengths), len(limits)), dtype=np.int64)
    last_user = np.full(int(ids.max(initial=-1)) + 1, -1, dtype=np.int64)
    left = _Counts(len(lengths))
    begin = 0
    for request, length in enumerate(lengths.tolist()):
        mine = ids[begin : begin + length]
        begin += length
        users = last_user[mine]
        edges = [0, *(np.flatnonzero(np.diff(users)) + 1).tolist(), length]
        runs = [(int(users[start]), start, end) for start, end in pairwise(edges) if end > start and users[start] >= 0]
        for user, start, end in runs:
            wanted = min(end, int(looked_up[request])) - start
            if wanted > 0:
                hits[request] += np.clip(limits - left.after(user), 0, wanted)
        for user, start, end in runs:
            left.add(user, start - end)
        last_user[mine] = request
        left.add(request, length)
    return hits


class _Counts:
    """A number an index, and sums of them, in logarithmic time (Fenwick, 1994)."""

    def __init__(self, size: int) -> None:
        self._sums = [0] * (size + 1)
        self._total = 0

    def add(self, index: int, amount: int) -> None:
        self._total += amount
        place = index + 1
        while place < len(self._sums):
            self._sums[place] += amount
            place += place & -place

    def after(self, index: int) -> int:
        """The sum of all numbers behind `index`."""
        place, sum_ = index + 1, self._total
        while place:
            sum_ -= self._sums[place]
            place -= place & -place
        return sum_
