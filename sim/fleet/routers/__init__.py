"""Routing policies, by name. A new one is one file here and one line in `ROUTERS`."""

from collections.abc import Callable

from sim.fleet.routers.least_outstanding import LeastOutstanding
from sim.fleet.routers.power_of_two import PowerOfTwo
from sim.fleet.routers.prefix_aware import PrefixAware
from sim.fleet.routers.round_robin import RoundRobin
from sim.fleet.routers.router import Router, RouterSetting

ROUTERS: dict[str, Callable[[RouterSetting], Router]] = {
    "round_robin": RoundRobin,
    "least_outstanding": LeastOutstanding,
    "power_of_two": PowerOfTwo,
    "prefix_aware": PrefixAware,
}
