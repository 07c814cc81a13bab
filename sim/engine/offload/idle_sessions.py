"""Sessions between two turns: when to write what they left, and when to fetch it before the next turn asks."""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterator
from heapq import heappop, heappush
from itertools import count
from math import ceil
from typing import NamedTuple

from sim.engine.block_pool import Holding
from sim.engine.offload.settings import KvOffloadSettings
from sim.engine.request import Request


class _Idle(NamedTuple):
    """A session's last answer."""

    since: float
    holding: Holding  # whose prefix ids it ended with
    tokens: int  # that were computed


class IdleSessions:
    """Idle times are those that this engine saw, from an answer to the arrival of the next turn: never the future."""

    def __init__(self, settings: KvOffloadSettings) -> None:
        self._idle_after = settings.idle_after
        self._prefetch = settings.prefetch
        self._idle: dict[str, _Idle] = {}
        self._seen: list[float] = []  # idle times, rising
        self._order = count()
        # Heaps of (due, order, whose).
        self._writes: list[tuple[float, int, str, _Idle]] = []
        self._fetches: list[tuple[float, int, str, _Idle]] = []

    def ended(self, request: Request) -> None:
        """The next turn of its session has come."""
        if request.session is None:
            return
        idle = self._idle.pop(request.session, None)
        if idle is not None and self._prefetch is not None:
            insort(self._seen, max(0.0, request.arrival - idle.since))

    def answered(self, request: Request, now: float, tokens: int) -> list[float]:
        """A turn has ended; when its blocks are due to be moved, should the next turn not have come."""
        if request.session is None or (self._idle_after is None and self._prefetch is None):
            return []
        old = request.holding
        idle = self._idle[request.session] = _Idle(now, Holding(old.keys, old.blocks_per_key), tokens)
        due = []
        for heap, after in ((self._writes, self._idle_after), (self._fetches, self._expected())):
            if after is not None:
                heappush(heap, (now + after, next(self._order), request.session, idle))
                due.append(now + after)
        return due

    def to_write(self, now: float) -> Iterator[tuple[Holding, int]]:
        """Those that have been idle for so long, each once: what holds nothing yet, and how many tokens it is."""
        return self._due(self._writes, now)

    def to_fetch(self, now: float) -> Iterator[tuple[Holding, int]]:
        """Those whose next turn is expected, each once."""
        return self._due(self._fetches, now)

    def _expected(self) -> float | None:
        """Seconds of idle time until a next turn is expected."""
        if self._prefetch is None or len(self._seen) < self._prefetch.least_seen:
            return None
        return self._seen[ceil(self._prefetch.quantile * len(self._seen)) - 1]

    def _due(self, heap: list[tuple[float, int, str, _Idle]], now: float) -> Iterator[tuple[Holding, int]]:
        while heap and heap[0][0] <= now:
            _, _, session, idle = heappop(heap)
            if self._idle.get(session) is idle:
                yield Holding(idle.holding.keys, idle.holding.blocks_per_key), idle.tokens
