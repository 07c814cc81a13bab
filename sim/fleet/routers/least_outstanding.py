"""The replica with the fewest requests waiting or running; the first of equals."""

from sim.engine.request import Request
from sim.fleet.load import Load, least
from sim.fleet.routers.router import Router


class LeastOutstanding(Router):
    def choose(self, request: Request, load: Load) -> int:
        return least(load.requests)
