"""What the engines of a pool say of themselves: as it is, or as it was when their metrics were last scraped."""

from __future__ import annotations

from collections.abc import Sequence
from math import floor

from simpy.events import URGENT

from sim.engine.clock import Clock
from sim.engine.gauge import IDLE, Gauge
from sim.fleet.replica import Replica


class Gauges:
    """`read` gives the gauges of all members, by place. A replica that was never scraped reads as idle.

    Scrapes happen at the multiples of the interval, before what else happens then, from the first time that anybody
    reads; not while nobody has any work, when there is nothing to see.
    """

    def __init__(self, clock: Clock, members: Sequence[Replica], interval: float) -> None:
        """`members` is the pool's own list. `interval` in seconds; 0: nothing is late."""
        self._clock = clock
        self._members = members
        self._interval = interval
        self._scraped: dict[int, Gauge] = {}  # by replica
        self._scraping = False

    def read(self) -> list[Gauge]:
        if not self._interval:
            return [member.engine.gauge for member in self._members]
        if not self._scraping:
            self._scraping = True
            self._next(floor(self._clock.now / self._interval) + 1)
        return [self._scraped.get(member.number, IDLE) for member in self._members]

    def _next(self, count: int) -> None:
        time = max(self._clock.now, count * self._interval)
        self._clock.at(time, URGENT).callbacks = [lambda _: self._scrape(count)]

    def _scrape(self, count: int) -> None:
        self._scraped = {member.number: member.engine.gauge for member in self._members}
        self._scraping = any(member.outstanding for member in self._members)
        if self._scraping:
            self._next(count + 1)
