"""The pools of a fleet that has several: their keys in a scenario, and whether they go with its other settings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sim.fleet.pool_settings import PoolSettings

if TYPE_CHECKING:
    from sim.study.scenario import FleetSettings

_ONE_POOL_ONLY = ("weight_cache", "autoscaler", "cold_start")


def pools_of(fleet: FleetSettings) -> dict[str, PoolSettings]:
    """Key in a scenario → what is set there; empty where the fleet is one pool."""
    if fleet.disaggregation is not None:
        both = {"prefill": fleet.disaggregation.prefill, "decode": fleet.disaggregation.decode}
        return {f"fleet.disaggregation.{name}": settings for name, settings in both.items()}
    return {f"fleet.sites.{name}": settings for name, settings in fleet.sites.items()}


def check_pools(fleet: FleetSettings) -> None:
    """Raises ValueError: two ways to have several pools, or a setting that is of one pool."""
    if fleet.placement is not None and not fleet.sites:
        raise ValueError("placement is given and no sites; expected the sites between which it chooses")
    pools = pools_of(fleet)
    if not pools:
        return
    kind = "disaggregation" if fleet.disaggregation is not None else "sites"
    if kind == "disaggregation" and fleet.sites:
        raise ValueError("disaggregation and sites are both given; expected one of them")
    if fleet.replicas != 1 or fleet.router != "round_robin":
        raise ValueError(f"{kind} and replicas or router are given; expected those of each pool ({', '.join(pools)})")
    for name in (*_ONE_POOL_ONLY, *(("admission",) if kind == "disaggregation" else ())):
        if getattr(fleet, name) is not None:
            raise ValueError(f"{kind} and {name} are both given; expected no {name}, which is of a fleet of one pool")
