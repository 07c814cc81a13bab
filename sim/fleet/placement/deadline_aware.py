"""The nearest site that is predicted to keep the deadline; or the farthest, leaving near ones to who needs them."""

from collections.abc import Sequence

from sim.engine.request import Request
from sim.fleet.placement.placement import Candidate, Placement, Task


class DeadlineAware(Placement):
    def choose(self, request: Request, task: Task, sites: Sequence[Candidate]) -> int:
        sign = 1 if self.setting.prefer == "nearest" else -1
        order = sorted(range(len(sites)), key=lambda place: sign * sites[place].rtt)
        return self.first_in_time(request, task, sites, order)
