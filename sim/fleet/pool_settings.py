"""What is set on one of several pools of a fleet: how many replicas, behind which router, and what differs in them."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from ground.spec import Spec
from sim.fleet.routers import ROUTERS
from sim.fleet.routing_settings import RoutingSettings


class PoolSettings(Spec):
    replicas: int = Field(default=1, gt=0)
    router: str = "round_robin"
    routing: RoutingSettings | None = Field(
        default=None, description="options of the router; those of the fleet if none"
    )
    engine: dict[str, Any] = Field(default={}, description="keys of `engine` that differ here")
    profile: str | None = Field(default=None, description="the devices of this pool; the scenario's if not given")
    gpu_hour_price: float | None = Field(
        default=None, gt=0, description="price of one GPU for one hour; the scenario's"
    )

    @model_validator(mode="after")
    def _known_router(self) -> PoolSettings:
        if self.router not in ROUTERS:
            raise ValueError(f"unknown router {self.router!r}, expected one of {', '.join(ROUTERS)}")
        return self
