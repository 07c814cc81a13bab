"""Simulated time, with events that can be placed at an exact instant.

SimPy schedules by delay; `now + (t - now)` may differ from `t` in the last bit. Engines step at sums of step times and
must arrive at the same sum whether they take the steps one by one or in one leap, so they name the instant.
"""

from heapq import heappush

import simpy

# Events at one instant: arrivals first (SimPy's NORMAL is 1), then engine steps, by replica. So an arrival at the very
# end of a step is seen by the next one, and ties between replicas do not depend on when their events were made.
FIRST_STEP_PRIORITY = 2


class Clock(simpy.Environment):
    def at(self, time: float, priority: int) -> simpy.Event:
        """An event that happens at `time` (not before now), in the order of `priority` among those of that instant."""
        event = simpy.Event(self)
        event._ok = True
        event._value = None
        heappush(self._queue, (time, priority, next(self._eid), event))
        return event
