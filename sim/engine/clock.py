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
