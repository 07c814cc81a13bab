"""Wakes a simulated engine when a window opens by itself: as an arrival would, it is acted on where a step ends."""

from __future__ import annotations

from collections.abc import Callable

import simpy

from sim.engine.batching.batch_queue import BatchQueue
from sim.engine.clock import Clock, Instant


class Alarm:
    """At most one instant is set: `ring` is called then, after those who arrive at it and before engines go on."""

    def __init__(self, clock: Clock, batches: BatchQueue | None, ring: Callable[[], None]) -> None:
        """`batches` sets it, if there are any."""
        self._clock = clock
        self._ring = ring
        self._event: Instant | None = None
        self._time: float | None = None
        if batches is not None:
            batches.watch(self._set)

    def stop(self) -> None:
        """It rings no more, as nobody sets it in an engine that has stopped."""
        self._set(None)

    def _set(self, time: float | None) -> None:
        if time == self._time:
            return
        if self._event is not None:
            self._clock.abandon(self._event)
        self._event, self._time = None, time
        if time is not None:
            self._event = self._clock.at(max(time, self._clock.now), simpy.events.NORMAL)
            self._event.callbacks.append(self._rang)

    def _rang(self, _: simpy.Event) -> None:
        self._event = self._time = None
        self._ring()
