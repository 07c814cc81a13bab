"""What is set on one of several pools of a fleet: how many replicas, behind which router, and what differs in them."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from ground.spec import Spec
from sim.fleet.autoscaling import AutoscalerSettings
from sim.fleet.cold_start_settings import ColdStartSettings
from sim.fleet.routers import ROUTERS
from sim.fleet.routing_settings import RoutingSettings, with_options_of


def spell_out_router(given: dict[str, Any], routing: Any = None) -> dict[str, Any]:
    """What was given for a pool, or for a fleet of one, where the options of the router that is used are there with
    their defaults; `routing` stands for those that are not given. Raises ValueError: there is no such router."""
    router = given.get("router", "round_robin")
    if not isinstance(router, str) or router not in ROUTERS:
        raise ValueError(f"unknown router {router!r}, expected one of {', '.join(ROUTERS)}")
    return {**given, "routing": with_options_of(router, given.get("routing", routing))}


class PoolSettings(Spec):
    replicas: int = Field(default=1, gt=0, description="that are there when the run begins")
    router: str = Field(default="round_robin", description=f"one of {', '.join(ROUTERS)}")
    routing: RoutingSettings | None = Field(
        default=None, description="options of the router; those of the fleet if none"
    )
    autoscaler: AutoscalerSettings | None = Field(
        default=None, description="the policy by which its replicas come and go; their number is fixed if not given"
    )
    cold_start: ColdStartSettings | None = Field(
        default=None, description="what a replica that comes needs until it is ready; it is ready at once if not given"
    )
    engine: dict[str, Any] = Field(default={}, description="keys of `engine` that differ here")
    profile: str | None = Field(default=None, description="the devices of this pool; the scenario's if not given")
    gpu_hour_price: float | None = Field(
        default=None, gt=0, description="price of one GPU for one hour; the scenario's"
    )

    @model_validator(mode="before")
    @classmethod
    def _spell_out_router(cls, given: Any) -> Any:
        return spell_out_router(given) if isinstance(given, dict) else given
