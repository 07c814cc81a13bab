"""The replica with the fewest requests waiting or running; the first of equals."""

from collections.abc import Sequence

from sim.engine.request import Request
from sim.fleet.routers.router import RouterSetting


class LeastOutstanding:
    def __init__(self, setting: RouterSetting) -> None:
        pass

    def choose(self, request: Request, outstanding: Sequence[int]) -> int:
        return outstanding.index(min(outstanding))
