"""Simulated time, with events that can be placed at an exact instant.

SimPy schedules by delay; `now + (t - now)` may differ from `t` in the last bit. Engines step at sums of step times and
must arrive at the same sum whether they take the steps one by one or in one leap, so they name the instant.
"""

from heapq import heappop, heappush
from typing import Any

import simpy

# Events at one instant: arrivals first (SimPy's NORMAL is 1), then engine steps, by replica. So an arrival at the very
# end of a step is seen by the next one, and ties between replicas do not depend on when their events were made.
FIRST_STEP_PRIORITY = 2


class Instant(simpy.Event):
    """An event that will happen at a known time. Only a `Clock` makes them."""

    _ok = True
    _value = None

    def __init__(self, env: simpy.Environment) -> None:
        self.env = env
        self.callbacks: list[Any] = []


class Clock(simpy.Environment):
    _watching = 0  # events placed by `watch` that have not happened

    @property
    def quiet(self) -> bool:
        """Whether nothing is to happen but what was placed by `watch`: time may pass, but nobody does anything."""
        return len(self._queue) <= self._watching

    def watch(self, time: float, priority: int) -> Instant:
        """Like `at`, for one who looks on from time to time and stops when all is `quiet`. Add callbacks to the event,
        do not replace them."""
        event = self.at(time, priority)
        event.callbacks.append(self._watched)
        self._watching += 1
        return event

    def abandon(self, event: simpy.Event) -> None:
        """Nothing happens at that event any more. If it has an instant that has yet to come it stays in the queue, and
        counts no more for who asks whether all is `quiet`."""
        if event.callbacks is None or self._watched in event.callbacks:
            return
        event.callbacks = []
        if isinstance(event, Instant):
            event.callbacks.append(self._watched)
            self._watching += 1

    def _watched(self, _: simpy.Event) -> None:
        self._watching -= 1

    def at(self, time: float, priority: int) -> Instant:
        """An event that happens at `time` (not before now), in the order of `priority` among those of that instant."""
        event = Instant(self)
        heappush(self._queue, (time, priority, next(self._eid), event))
        return event

    def run_out(self) -> int:
        """Run until nothing is left to happen; returns how many events there were.

        What `simpy.Environment.run` does event by event (`simpy/core.py`), in one loop.
        """
        queue = self._queue
        while queue:
            self._now, _, _, event = heappop(queue)
            callbacks, event.callbacks = event.callbacks, None
            for callback in callbacks:
                callback(event)
            if not event._ok and not hasattr(event, "_defused"):
                raise event._value
        return next(self._eid)
