"""Two replicas at random, the less loaded of them (Mitzenmacher, 2001, doi:10.1109/71.963420)."""

from collections.abc import Sequence

from sim.engine.request import Request
from sim.fleet.routers.router import RouterSetting


class PowerOfTwo:
    def __init__(self, setting: RouterSetting) -> None:
        self._replicas = setting.replicas
        self._random = setting.random

    def choose(self, request: Request, outstanding: Sequence[int]) -> int:
        if self._replicas == 1:
            return 0
        first = int(self._random.integers(self._replicas))
        second = int(self._random.integers(self._replicas - 1))
        if second >= first:
            second += 1
        return first if outstanding[first] <= outstanding[second] else second
