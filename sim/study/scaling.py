"""From a scenario's autoscaler and cold start to what brings the replicas of a pool up and down."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from ground.assumption import Assumption
from ground.errors import UserError
from sim.fleet.autoscaler import Autoscaler
from sim.fleet.autoscaling import POLICIES
from sim.fleet.autoscaling.capacity import Capacity
from sim.fleet.autoscaling.planner import PlannerSettings
from sim.fleet.autoscaling.policy import PolicySetting
from sim.fleet.autoscaling.predictive import PredictiveSettings
from sim.fleet.cold_start import ColdStart
from sim.fleet.cold_start_settings import ColdStartSettings
from sim.fleet.pool import Pool
from sim.fleet.service import Service
from sim.fleet.world import OnEnd, World
from sim.study.asked_times import AskedTimes
from sim.study.deployment import Deployment
from sim.study.engine_memory import capture_seconds
from sim.study.load_series import load_series
from sim.study.pools import scaled
from sim.study.scenario import EngineSettings, FleetSettings, Scenario


class Scaling:
    """Of one pool; `assumptions` are those that its settings lead to."""

    def __init__(self, scenario: Scenario, deployment: Deployment, key: str) -> None:
        """`scenario` is the pool's own, and `key` is where the pool is set. Raises UserError: what the policy or the
        nodes need is not what the engine is."""
        self._scenario = scenario
        self._deployment = deployment
        self._cold: ColdStartSettings | None = None
        self.assumptions: list[Assumption] = []
        settings, fleet, scaler = scenario.engine, scenario.fleet, scenario.fleet.autoscaler
        if fleet.cold_start is not None:
            self._cold, self.assumptions = _resolved(fleet.cold_start, settings, deployment, fleet.replicas, key)
        if scaler is None:
            return
        asks = isinstance(scaler, PlannerSettings) or (isinstance(scaler, PredictiveSettings) and not scaler.capacity)
        if not asks:
            return
        for name in ("data_parallel", "pipeline_parallel"):
            if getattr(settings, name) > 1:
                raise UserError(
                    f"{key}.autoscaler.policy is {scaler.policy} and engine.{name} is {getattr(settings, name)}; "
                    "expected 1, since it plans with one step after the other of one engine"
                )
        note = "what a replica can do is asked of the engine's own step times, for equal requests of mean lengths"
        self.assumptions.append(Assumption("fleet.autoscaler.capacity", scaler.policy, "", "assumed", note))

    def serve(self, world: World, on_end: OnEnd, make: Callable[[OnEnd], Pool]) -> Service:
        """The pool that `make` makes, brought up and scaled as is set."""
        scenario = self._scenario
        settings = scenario.fleet.autoscaler
        if settings is None:
            pool = make(on_end)
            self._bring_up(world, pool)
            return pool
        capacity = Capacity(self._deployment.config, AskedTimes(self._deployment.step_times))
        setting = PolicySetting(capacity, self._history, scenario.seed)
        scaler = Autoscaler(world, settings, POLICIES[settings.policy](settings, setting), on_end)
        pool = make(scaler.ended)
        cold = self._bring_up(world, pool)
        scaler.drive(pool, *(() if cold is None else (cold.pending,)))
        return scaler

    def _bring_up(self, world: World, pool: Pool) -> ColdStart | None:
        return None if self._cold is None else ColdStart(world, pool, self._cold)

    def _history(self, interval: float) -> np.ndarray:
        settings = self._scenario.fleet.autoscaler
        if not isinstance(settings, PredictiveSettings) or settings.history is None:
            return np.zeros(0)
        # Of another seed: what is drawn alike would foretell the run itself.
        return load_series(settings.history.load(Path(), self._scenario.seed + 1), interval).load


def sleep_shares(fleet: FleetSettings) -> dict[str, float]:
    """Name of a pool whose engines may sleep → the share of a replica's price that one costs meanwhile."""
    return {
        name: pool.cold_start.sleep.share
        for name, pool in scaled(fleet).items()
        if pool.cold_start is not None and pool.cold_start.sleep is not None
    }


def _resolved(
    given: ColdStartSettings, settings: EngineSettings, deployment: Deployment, replicas: int, key: str
) -> tuple[ColdStartSettings, list[Assumption]]:
    times, nodes = deployment.step_times, given.nodes
    if nodes is not None and nodes.gpus < settings.gpus:
        raise UserError(
            f"{key}.cold_start.nodes.gpus is {nodes.gpus} and a replica has {settings.gpus}; "
            "expected a node that has room for one"
        )
    asleep = 0 if given.sleep is None else given.sleep.ready
    if nodes is not None and nodes.max is not None:
        room = nodes.max * (nodes.gpus // settings.gpus)
        if room < replicas + asleep:
            raise UserError(
                f"{key}.cold_start.nodes.max is {nodes.max}, with room for {room} replicas; "
                f"expected room for the {replicas + asleep} that are there when the run begins"
            )
    # An engine that builds shapes as it meets them captures none when it starts.
    graphs = 0 if settings.shapes is not None else len(settings.graph_sizes)
    return given.resolve(times.model.weight_bytes(), graphs, capture_seconds(times.profile))
