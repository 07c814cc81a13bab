"""Sites are filled one after the other, each up to a share of its capacity; what is left over spills to the next."""

from collections.abc import Sequence

from sim.engine.request import Request
from sim.fleet.placement.placement import Candidate, Placement, Task


class LoadAware(Placement):
    def choose(self, request: Request, task: Task, sites: Sequence[Candidate]) -> int:
        for place, site in enumerate(sites):
            if site.fill < self.setting.threshold:
                return place
        return min(range(len(sites)), key=lambda place: sites[place].fill)
