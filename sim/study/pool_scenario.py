"""One of several pools of a scenario as a scenario of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from calibrate.latency import StepLatency
from ground.assumption import Assumption
from sim.fleet.pool_settings import PoolSettings
from sim.study.deployment import deploy
from sim.study.pools import pools_of
from sim.study.scenario import Scenario


def pool_scenario(scenario: Scenario, key: str, pool: PoolSettings) -> Scenario:
    """The scenario with what differs in the pool under `key`. Raises UserError: as `Scenario.engine_of`."""
    changed: dict[str, Any] = {"engine": scenario.engine_of(key, pool)}
    for name in ("profile", "gpu_hour_price", "model"):
        if (value := getattr(pool, name, None)) is not None:
            changed[name] = value
    fleet = {name: getattr(pool, name) for name in ("replicas", "autoscaler", "cold_start")}
    return scenario.model_copy(update={**changed, "fleet": scenario.fleet.model_copy(update=fleet)})


def pool_scenarios(scenario: Scenario) -> dict[str, Scenario]:
    """Key of each pool → its scenario; empty where the fleet is one pool."""
    return {key: pool_scenario(scenario, key, pool) for key, pool in pools_of(scenario.fleet).items()}


def of_pool(key: str, assumptions: Sequence[Assumption]) -> list[Assumption]:
    """The assumptions of a pool, each named by where it is."""
    return [replace(assumption, name=f"{key}.{assumption.name.removeprefix('fleet.')}") for assumption in assumptions]


def step_times_of(scenario: Scenario) -> StepLatency | dict[str, StepLatency]:
    """Of its engines, by the name of their pool where it has several."""
    several = pool_scenarios(scenario)
    if not several:
        return deploy(scenario).step_times
    return {key.rpartition(".")[2]: deploy(own).step_times for key, own in several.items()}
