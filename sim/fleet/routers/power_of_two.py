"""Two replicas at random, the less loaded of them (Mitzenmacher, 2001, doi:10.1109/71.963420)."""

from sim.engine.request import Request
from sim.fleet.load import Load
from sim.fleet.routers.router import Router


class PowerOfTwo(Router):
    def choose(self, request: Request, load: Load) -> int:
        outstanding, random = load.requests, self.setting.random
        if len(outstanding) == 1:
            return 0
        first = int(random.integers(len(outstanding)))
        second = int(random.integers(len(outstanding) - 1))
        if second >= first:
            second += 1
        return first if outstanding[first] <= outstanding[second] else second
