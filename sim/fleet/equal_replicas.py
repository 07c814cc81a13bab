"""The plainest fleet: one pool of equal replicas that are always there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import polars as pl

from sim.engine.config import EngineConfig
from sim.engine.step_costs import StepCosts
from sim.engine.step_times import StepTimes
from sim.fleet.admission_settings import AdmissionSettings
from sim.fleet.fit import check_fit
from sim.fleet.fleet import Fleet
from sim.fleet.pool import Pool
from sim.fleet.replica import ReplicaKind, no_costs
from sim.fleet.routing_settings import RoutingSettings
from sim.results.recorder import EventRecorder


def equal_replicas(
    requests: pl.DataFrame,
    engine: EngineConfig,
    step_times: StepTimes,
    *,
    replicas: int = 1,
    router: str = "round_robin",
    routing: RoutingSettings | None = None,
    admission: AdmissionSettings | None = None,
    seed: int = 0,
    costs: Callable[[int, EventRecorder], StepCosts | None] = no_costs,
    weights: Any = None,
    leap: bool = True,
) -> Fleet:
    """The arguments are those of `Fleet`, `Pool` and `ReplicaKind`; `costs` need not be told since when.

    Raises:
        UserError: a request that no engine could ever finish.
    """
    check_fit(requests, engine)
    kind = ReplicaKind(engine, step_times, lambda replica, events, _: costs(replica, events), weights)
    return Fleet(
        requests,
        lambda world, on_end: Pool(
            world, kind, on_end, replicas=replicas, router=router, routing=routing, admission=admission
        ),
        seed=seed,
        leap=leap,
    )
