"""Routing policies, by name. A new one is one file here and one line in `ROUTERS`.

Its options, if it has any, are one line more, in `sim.fleet.routing_settings.RoutingSettings`, under its name.
"""

from collections.abc import Callable

from sim.fleet.routers.kv_cost import KvCost
from sim.fleet.routers.least_outstanding import LeastOutstanding
from sim.fleet.routers.least_tokens import LeastTokens
from sim.fleet.routers.power_of_two import PowerOfTwo
from sim.fleet.routers.prefix_aware import PrefixAware
from sim.fleet.routers.random import Random
from sim.fleet.routers.round_robin import RoundRobin
from sim.fleet.routers.router import Router, RouterSetting
from sim.fleet.routers.scorers import Scorers
from sim.fleet.routers.session_affinity import SessionAffinity
from sim.fleet.routers.slo_tiers import SloTiers

ROUTERS: dict[str, Callable[[RouterSetting], Router]] = {
    "round_robin": RoundRobin,
    "random": Random,
    "least_outstanding": LeastOutstanding,
    "least_tokens": LeastTokens,
    "power_of_two": PowerOfTwo,
    "prefix_aware": PrefixAware,
    "kv_cost": KvCost,
    "scorers": Scorers,
    "session_affinity": SessionAffinity,
    "slo_tiers": SloTiers,
}
