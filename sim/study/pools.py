"""The pools of a fleet that has several: their keys in a scenario, and whether they go with its other settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sim.fleet.autoscaling.planner import PlannerSettings
from sim.fleet.pool_settings import PoolSettings
from sim.fleet.routing_settings import with_options_of

if TYPE_CHECKING:
    from sim.study.scenario import FleetSettings

_OF_EACH_POOL = ("autoscaler", "cold_start")
_ONE_POOL_ONLY = ("weight_cache",)


def pools_of(fleet: FleetSettings) -> dict[str, PoolSettings]:
    """Key in a scenario → what is set there; empty where the fleet is one pool."""
    if fleet.disaggregation is not None:
        both = {"prefill": fleet.disaggregation.prefill, "decode": fleet.disaggregation.decode}
        return {f"fleet.disaggregation.{name}": settings for name, settings in both.items()}
    return {f"fleet.sites.{name}": settings for name, settings in fleet.sites.items()}


def all_pools(fleet: FleetSettings) -> Mapping[str, FleetSettings | PoolSettings]:
    """The same, and `fleet` where the fleet is one pool."""
    return pools_of(fleet) or {"fleet": fleet}


def scaled(fleet: FleetSettings) -> Mapping[str, FleetSettings | PoolSettings]:
    """Name of a pool → where its replicas, autoscaler and cold start are set; the only pool has no name."""
    return {key.rpartition(".")[2]: pool for key, pool in pools_of(fleet).items()} or {"": fleet}


def spell_out_routing(fleet: dict[str, Any]) -> dict[str, Any]:
    """What was given as `fleet`, where a pool without `routing` has the fleet's, and the options of its own router."""

    def of(pool: Any) -> Any:
        if not isinstance(pool, dict) or pool.get("routing") is not None:
            return pool
        return {**pool, "routing": with_options_of(str(pool.get("router", "round_robin")), fleet.get("routing", {}))}

    both, sites = fleet.get("disaggregation"), fleet.get("sites")
    if isinstance(both, dict):
        fleet = {
            **fleet,
            "disaggregation": both | {name: of(both[name]) for name in ("prefill", "decode") if name in both},
        }
    if isinstance(sites, dict):
        fleet = {**fleet, "sites": {name: of(site) for name, site in sites.items()}}
    return fleet


def check_pools(fleet: FleetSettings) -> None:
    """Raises ValueError: two ways to have several pools, or a setting that is of one pool."""
    if fleet.placement is not None and not fleet.sites:
        raise ValueError("placement is given and no sites; expected the sites between which it chooses")
    pools = pools_of(fleet)
    _check_roles(fleet)
    if not pools:
        return
    kind = "disaggregation" if fleet.disaggregation is not None else "sites"
    if kind == "disaggregation" and fleet.sites:
        raise ValueError("disaggregation and sites are both given; expected one of them")
    if fleet.replicas != 1 or fleet.router != "round_robin":
        raise ValueError(f"{kind} and replicas or router are given; expected those of each pool ({', '.join(pools)})")
    for name in _OF_EACH_POOL:
        if getattr(fleet, name) is not None:
            raise ValueError(f"{kind} and {name} are both given; expected {name} of each pool ({', '.join(pools)})")
    for name in fleet.sites:
        if not name or "." in name:
            raise ValueError(f"a site is named {name!r}; expected a name without dots")
    if kind == "disaggregation" and fleet.failures is not None and fleet.failures.failover != "none":
        raise ValueError(
            f"disaggregation and failures.failover {fleet.failures.failover} are both given; expected none: a request "
            "is with two replicas at once, and fails with either"
        )
    for name in (*_ONE_POOL_ONLY, *(("admission",) if kind == "disaggregation" else ())):
        if getattr(fleet, name) is not None:
            raise ValueError(f"{kind} and {name} are both given; expected no {name}, which is of a fleet of one pool")


def _check_roles(fleet: FleetSettings) -> None:
    """Pools that are disaggregated know their own."""
    if fleet.disaggregation is not None:
        return
    for key, pool in all_pools(fleet).items():
        if isinstance(pool.autoscaler, PlannerSettings) and pool.autoscaler.role != "both":
            raise ValueError(
                f"{key}.autoscaler.role is {pool.autoscaler.role}; expected both, since its replicas compute prompts "
                "and decode"
            )
