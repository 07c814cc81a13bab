"""One of several pools of a scenario as a scenario of its own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from calibrate.latency import StepLatency
from ground.assumption import Assumption
from ground.spec import check_spec
from sim.fleet.pool_settings import PoolSettings
from sim.study.deployment import deploy
from sim.study.pools import pools_of
from sim.study.scenario import EngineSettings, Scenario


def pool_scenario(scenario: Scenario, key: str, pool: PoolSettings) -> Scenario:
    """The scenario with what differs in the pool under `key`. An `engine.preset` of its own brings its own defaults: of
    the scenario's engine it keeps what differs from the defaults there.

    Raises:
        UserError: the keys of its `engine` make none.
    """
    engine = scenario.engine
    given: dict[str, Any] = {name: getattr(engine, name) for name in engine.model_fields_set}
    if pool.engine.get("preset", engine.preset) != engine.preset:
        usual = EngineSettings(preset=engine.preset)
        given = {name: value for name, value in given.items() if value != getattr(usual, name)}
    changed: dict[str, Any] = {"engine": check_spec(EngineSettings, {**given, **pool.engine}, f"{key}.engine")}
    for name in ("profile", "gpu_hour_price", "model"):
        if (value := getattr(pool, name, None)) is not None:
            changed[name] = value
    fleet = {name: getattr(pool, name) for name in ("replicas", "autoscaler", "cold_start")}
    return scenario.model_copy(update={**changed, "fleet": scenario.fleet.model_copy(update=fleet)})


def of_pool(key: str, assumptions: list[Assumption]) -> list[Assumption]:
    """The assumptions of a pool, each named by where it is."""
    return [replace(assumption, name=f"{key}.{assumption.name.removeprefix('fleet.')}") for assumption in assumptions]


def step_times_of(scenario: Scenario) -> StepLatency | dict[str, StepLatency]:
    """Of its engines, by the name of their pool where it has several."""
    pools = pools_of(scenario.fleet)
    if not pools:
        return deploy(scenario).step_times
    return {
        key.rpartition(".")[2]: deploy(pool_scenario(scenario, key, pool)).step_times for key, pool in pools.items()
    }
