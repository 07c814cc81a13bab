"""Any replica, all equally often."""

from sim.engine.request import Request
from sim.fleet.load import Load
from sim.fleet.routers.router import Router


class Random(Router):
    def choose(self, request: Request, load: Load) -> int:
        return int(self.setting.random.integers(len(load.requests)))
