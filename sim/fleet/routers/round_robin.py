"""Each replica in turn."""

from sim.engine.request import Request
from sim.fleet.load import Load
from sim.fleet.routers.router import Router


class RoundRobin(Router):
    _next = 0

    def choose(self, request: Request, load: Load) -> int:
        place = self._next % len(load.requests)  # there may be fewer than a moment ago
        self._next = place + 1
        return place
