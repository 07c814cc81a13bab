"""From one pool's engine settings to what its replicas are, and what had to be assumed for them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import polars as pl

from calibrate.power_law import power_law
from ground.assumption import Assumption
from sim.fleet.fit import check_fit
from sim.fleet.pool_settings import PoolSettings
from sim.fleet.replica import ReplicaKind
from sim.results.energy import ReplicaPower
from sim.study.deployment import Deployment
from sim.study.engine_memory import check_contexts, has_pool
from sim.study.host_tiers import host_link_of, of_tiers
from sim.study.host_weights import HostWeights
from sim.study.scaling import Scaling
from sim.study.scenario import FleetSettings, Scenario
from sim.study.step_sources import StepSources
from traces.table import Trace


class PoolParts:
    """Made for one run. `kind` is what the replicas are, `scaling` what brings them up and down."""

    def __init__(self, scenario: Scenario, trace: Trace, deployment: Deployment, key: str = "fleet") -> None:
        """`scenario` is the pool's own, `deployment` of its engine, and `key` is where the pool is set.

        Raises:
            UserError: a request can never run on such a replica, its host cannot hold a model that is asked for, or
                what its autoscaler or cold start needs is not what the engine is.
        """
        settings, model = scenario.engine, deployment.step_times.model
        check_contexts(settings, model, trace.requests)
        check_fit(trace.requests, deployment.config)
        cache = scenario.fleet.weight_cache
        hosted = None if cache is None else HostWeights(cache, model, trace, scenario.seed)
        self.deployment = deployment
        self.sources = StepSources(
            settings, deployment.config, deployment.step_times, deployment.memory, deployment.shapes
        )
        power = power_law(deployment.step_times.profile)
        # KV blocks of one replica; None where it has no pool of them.
        self.kv_blocks = deployment.config.kv_blocks * settings.data_parallel if has_pool(settings) else None
        self.kind = ReplicaKind(
            deployment.config,
            deployment.step_times,
            self.sources.make,
            None if hosted is None else hosted.make,
            settings.gpus,
            scenario.gpu_hour_price,
            None if power is None else ReplicaPower(power, settings.gpus, settings.data_parallel),
            kv_blocks=self.kv_blocks,
            host_link=host_link_of(settings, deployment.step_times),
        )
        self.scaling = Scaling(scenario, deployment, key)
        self.assumptions: Sequence[Assumption] = [
            *deployment.assumptions,
            *of_tiers(settings, deployment.step_times),
            *(() if hosted is None else hosted.assumptions),
            *(() if power is None else power.assumptions()),
            *_of_adapters(deployment),
            *self.scaling.assumptions,
        ]

    def extrapolated(self) -> list[Assumption]:
        """After the run: how often its step times were asked for outside what was measured."""
        return [
            Assumption(f"latency.extrapolated.{kernel}", count, "look-ups", "assumed", "outside the measured grid")
            for kernel, count in self.deployment.step_times.extrapolated.items()
            if count
        ]


def _of_adapters(deployment: Deployment) -> list[Assumption]:
    limit = deployment.config.max_loras
    note = "at most so many run in one step, as in vLLM; what an adapter adds to the kernels and to memory is left out"
    return [] if limit is None else [Assumption("engine.max_loras", limit, "adapters", "user", note)]


def memory_of(pools: Sequence[PoolParts]) -> pl.DataFrame | None:
    """After the run: the memory of all devices over time, where it was modelled."""
    tables = [table for pool in pools if (table := pool.sources.memory_table()) is not None]
    return pl.concat(tables).sort("time", "replica", maintain_order=True) if tables else None


def kv_blocks_of(pools: Sequence[PoolParts], settings: Iterable[FleetSettings | PoolSettings]) -> int | None:
    """Of the whole fleet; None where a pool has none, or their number changes with its replicas."""
    total = 0
    for parts, own in zip(pools, settings, strict=True):
        if parts.kv_blocks is None or own.autoscaler is not None:
            return None
        total += parts.kv_blocks * own.replicas
    return total
