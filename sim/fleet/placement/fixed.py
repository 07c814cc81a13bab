"""Every class has its site."""

from collections.abc import Sequence

from sim.engine.request import Request
from sim.fleet.placement.placement import Candidate, Placement, Task


class Fixed(Placement):
    def choose(self, request: Request, task: Task, sites: Sequence[Candidate]) -> int:
        return next((place for place, site in enumerate(sites) if site.name == task.site), 0)
