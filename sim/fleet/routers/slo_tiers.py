"""Each tier of requests has replicas of its own, so that the less urgent cannot delay the more urgent.

Envoy's subset load balancing does so by the replicas' labels, and an `InferencePool` a class of service in the Gateway
API Inference Extension; neither lets the priority of a request choose among replicas otherwise: it orders queues and
sheds (`sim.fleet.admission`). With `spill` a tier whose replicas are all busy borrows those of less urgent tiers, as
Envoy's priority levels let traffic pass on to the next level; never the other way. In a tier the replica with the
fewest outstanding is chosen.
"""

from __future__ import annotations

from collections.abc import Sequence

from sim.engine.request import Request
from sim.fleet.load import Load
from sim.fleet.routers.router import Router, RouterSetting
from sim.fleet.routing_settings import SloTiersSettings


class SloTiers(Router):
    def __init__(self, setting: RouterSetting) -> None:
        super().__init__(setting)
        self._options = setting.options.slo_tiers or SloTiersSettings()
        self._places: list[range] = []  # by tier

    def members(self, replicas: Sequence[int]) -> None:
        self._places = divide(len(replicas), [tier.share for tier in self._options.tiers])

    def choose(self, request: Request, load: Load) -> int:
        outstanding, spill = load.requests, self._options.spill
        places: Sequence[int] = self._places[self._tier(request.priority)]
        best = min(places, key=outstanding.__getitem__)
        if spill is not None and outstanding[best] >= spill:
            best = min(range(places[0], len(outstanding)), key=outstanding.__getitem__)
        return best

    def _tier(self, priority: int) -> int:
        for number, tier in enumerate(self._options.tiers):
            if tier.min_priority is None or priority >= tier.min_priority:
                return number
        raise AssertionError("the last tier takes the rest")


def divide(replicas: int, shares: Sequence[float]) -> list[range]:
    """The places of each tier, most urgent first: as its share is, rounded, and at least one.

    Where there are fewer replicas than tiers, the last ones are for all tiers that are left.
    """
    out: list[range] = []
    begin, gone = 0, 0.0
    for left, share in zip(range(len(shares) - 1, -1, -1), shares, strict=True):
        gone += share
        end = max(begin + 1, min(round(gone * replicas), replicas - left))
        if end > replicas:
            begin, end = replicas - 1, replicas
        out.append(range(begin, end))
        begin = end
    return out
