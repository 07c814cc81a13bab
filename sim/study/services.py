"""From a scenario's `fleet` to what serves its requests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ground.assumption import Assumption
from sim.fleet.pool import Pool
from sim.fleet.service import Service
from sim.fleet.world import OnEnd, World
from sim.study.deployment import Deployment
from sim.study.pool_parts import PoolParts
from sim.study.scenario import Scenario
from traces.table import Trace


@dataclass(frozen=True)
class Serving:
    """`make` makes the service of one run; `kv_blocks` are those of the whole fleet as it begins, None: no pool."""

    make: Callable[[World, OnEnd], Service]
    pools: Sequence[PoolParts]
    kv_blocks: int | None
    assumptions: Sequence[Assumption]


def serving(scenario: Scenario, trace: Trace, deployment: Deployment) -> Serving:
    """`deployment` is of the scenario's own engine settings. Raises UserError: a request can never run."""
    parts = PoolParts(scenario, trace, scenario.engine, deployment, gpu_hour_price=scenario.gpu_hour_price)
    fleet = scenario.fleet

    def make(world: World, on_end: OnEnd) -> Service:
        return Pool(world, parts.kind, on_end, replicas=fleet.replicas, router=fleet.router)

    blocks = None if parts.kv_blocks is None else parts.kv_blocks * fleet.replicas
    return Serving(make, [parts], blocks, parts.assumptions)
