"""A router that is told by a test what a fleet would tell it."""

from collections.abc import Sequence

from sim.engine.gauge import IDLE, Gauge
from sim.engine.request import Request
from sim.fleet.load import Load
from sim.fleet.routers import ROUTERS
from sim.fleet.routers.router import Router, RouterSetting
from sim.fleet.routing_settings import RoutingSettings
from traces.streams import stream


class Told:
    """`choose` takes how many requests each replica has, and its gauge."""

    def __init__(self, router: Router) -> None:
        self.router = router

    def choose(self, request: Request, requests: Sequence[int], gauges: Sequence[Gauge] | None = None) -> int:
        load = self.load_of(requests, gauges)
        choice = self.router.choose(request, load)
        assert load.requests == list(requests)
        return choice

    @staticmethod
    def load_of(requests: Sequence[int], gauges: Sequence[Gauge] | None = None) -> Load:
        load = Load(lambda: gauges or [IDLE] * len(requests))
        load.requests, load.tokens = list(requests), [100 * count for count in requests]
        return load


def make(
    name: str, replicas: int, *, kv_tokens: int = 10_000, seed: int = 0, routing: RoutingSettings | None = None
) -> Told:
    """Replicas 0, 1, ... in places of the same numbers."""
    setting = RouterSetting(stream(seed, "router"), kv_tokens, 16, routing or RoutingSettings())
    router = ROUTERS[name](setting)
    router.members(range(replicas))
    return Told(router)


def prompt(
    *prefix_ids: int, block_tokens: int = 16, session: str | None = None, priority: int = 0, request_id: int = 0
) -> Request:
    """A prompt of nothing but its ids, of one token if it has none."""
    tokens = max(1, len(prefix_ids) * block_tokens)
    return Request(request_id, 0.0, tokens, 1, prefix_ids, block_tokens, priority, session)
