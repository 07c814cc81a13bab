"""From a scenario to a run: read the trace, deploy the engines, simulate, measure."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from ground.assumption import Assumption
from sim.fleet.fleet import Fleet, FleetRun
from sim.results import metrics, weight_metrics
from sim.results.folder import Run
from sim.study.deployment import Deployment, deploy
from sim.study.pool_parts import memory_of
from sim.study.scenario import Scenario
from sim.study.services import Serving, serving
from traces.source import TraceSource
from traces.table import Trace


def load_trace(scenario: Scenario) -> Trace:
    """The requests of a scenario. The last ones are kept, since the points of a sweep mostly share them."""
    return _load_trace(scenario.trace.model_dump_json(exclude_none=True), scenario.seed)


@lru_cache(maxsize=2)
def _load_trace(source: str, seed: int) -> Trace:
    return TraceSource.model_validate_json(source).load(Path(), seed)


def run_fleet(scenario: Scenario, trace: Trace, deployment: Deployment) -> FleetRun:
    """The simulation alone. Raises UserError: a request can never run."""
    return _run(scenario, trace, serving(scenario, trace, deployment))


def simulate(scenario: Scenario, trace: Trace | None = None) -> Run:
    """Simulate a scenario, on its own trace unless another is given.

    Raises:
        UserError: the trace, profile or model cannot be read or do not fit each other, or a request can never run.
    """
    trace = trace or load_trace(scenario)
    parts = serving(scenario, trace, deploy(scenario))
    result = _run(scenario, trace, parts)
    assumptions = [
        *parts.assumptions,
        *(assumption for pool in parts.pools for assumption in pool.extrapolated()),
        *(
            Assumption("trace.dropped", count, "rows", "assumed", f"left out of {trace.source}: {reason}")
            for reason, count in trace.dropped.items()
        ),
    ]
    memory = memory_of(parts.pools)
    numbers = metrics.compute(
        result.requests,
        result.steps,
        slo=scenario.slo,
        gpus=scenario.gpus,
        gpu_hour_price=scenario.gpu_hour_price,
        memory=memory,
        events=result.events,
        kv_blocks_total=parts.kv_blocks,
        replicas=result.replicas,
    )
    if scenario.fleet.weight_cache is not None:
        numbers["weights"] = weight_metrics.compute(result.requests, result.events)
    if result.kv_use is not None:
        numbers["kv"]["use"] = result.kv_use
    return Run(
        result.requests,
        result.steps,
        numbers,
        scenario.resolved(),
        assumptions,
        events=result.events,
        memory=memory,
        sessions=result.sessions,
        replicas=result.replicas,
    )


def _run(scenario: Scenario, trace: Trace, parts: Serving) -> FleetRun:
    may_leap = all(pool.sources.may_leap for pool in parts.pools)
    return Fleet(trace.requests, parts.make, seed=scenario.seed, leap=may_leap).run()
