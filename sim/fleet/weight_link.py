"""A link that the copies under way share equally (processor sharing), with exact ends and no slices of time.

All copies get the same bytes in the same time. So the link counts the bytes that one copy got since the link was last
idle; a copy ends when that count has grown by its size, and the order of the ends never changes.
"""

from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count

import simpy
from simpy.events import URGENT

from sim.engine.clock import Clock, Instant


class SharedLink:
    def __init__(self, clock: Clock, bandwidth: float | None) -> None:
        """`bandwidth`: bytes/s; None = copies take no time."""
        self._clock = clock
        self._bandwidth = bandwidth
        self._order = count()
        self._ends: list[tuple[float, int, Callable[[], None]]] = []  # heap of (count at its end, order, whom to tell)
        self._count = 0.0
        self._counted_at = 0.0
        self._next: Instant | None = None  # end of a copy

    def copy(self, size: int, done: Callable[[], None]) -> None:
        """Begin to copy `size` bytes; `done` is called when that has ended, perhaps at once."""
        if self._bandwidth is None:
            done()
            return
        now = self._clock.now
        if self._ends:
            self._count += (now - self._counted_at) * self._bandwidth / len(self._ends)
        else:
            self._count = 0.0
        self._counted_at = now
        heappush(self._ends, (self._count + size, next(self._order), done))
        self._wait(self._bandwidth)

    def _wait(self, bandwidth: float) -> None:
        if self._next is not None:
            self._next.callbacks = []
        if self._ends:
            left = max(0.0, self._ends[0][0] - self._count)
            # Before what arrives at that instant, which then finds the copy there.
            self._next = self._clock.at(self._counted_at + left * len(self._ends) / bandwidth, URGENT)
            self._next.callbacks = [self._ended]

    def _ended(self, _: simpy.Event) -> None:
        assert self._bandwidth is not None
        self._count, self._counted_at = self._ends[0][0], self._clock.now
        ended = []
        while self._ends and self._ends[0][0] <= self._count:
            ended.append(heappop(self._ends)[2])
        self._wait(self._bandwidth)
        for done in ended:
            done()
