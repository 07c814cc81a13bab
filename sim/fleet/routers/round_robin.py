"""Each replica in turn."""

from collections.abc import Sequence

from sim.engine.request import Request
from sim.fleet.routers.router import RouterSetting


class RoundRobin:
    def __init__(self, setting: RouterSetting) -> None:
        self._replicas = setting.replicas
        self._next = 0

    def choose(self, request: Request, outstanding: Sequence[int]) -> int:
        replica = self._next
        self._next = (replica + 1) % self._replicas
        return replica
