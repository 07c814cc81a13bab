"""The cheapest site that is predicted to keep the deadline."""

from collections.abc import Sequence

from sim.engine.request import Request
from sim.fleet.placement.placement import Candidate, Placement, Task


class CostAware(Placement):
    def choose(self, request: Request, task: Task, sites: Sequence[Candidate]) -> int:
        cheapest = sorted(range(len(sites)), key=lambda place: sites[place].cost(request, task))
        return self.first_in_time(request, task, sites, cheapest)
