"""From a scenario to a run: read the trace, deploy the engines, simulate, measure."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from ground.assumption import Assumption
from sim.fleet.fleet import Fleet, FleetRun
from sim.fleet.order_columns import with_order_columns
from sim.fleet.places.placement_settings import PlacementSettings
from sim.fleet.weights.adapters import with_adapters
from sim.results import (
    energy,
    metrics,
    offload_metrics,
    placement_metrics,
    reliability_metrics,
    scaling_metrics,
    sleeping,
    speculation_metrics,
    transfer_metrics,
    weight_metrics,
)
from sim.results.folder import Run
from sim.study.deployment import Deployment
from sim.study.placed import deadlines
from sim.study.pool_parts import memory_of
from sim.study.pools import scaled
from sim.study.reliability import with_failures
from sim.study.scaling import sleep_shares
from sim.study.scenario import Scenario
from sim.study.services import serving
from sim.study.serving import Serving
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
    parts = serving(scenario, trace)
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
    pools = scaled(scenario.fleet)
    shares = sleep_shares(scenario.fleet)
    asleep = sleeping.stays(result.events, result.replicas, shares) if shares else None
    numbers = metrics.compute(
        result.requests,
        result.steps,
        slo=scenario.slo,
        gpus=scenario.gpus if all(pool.autoscaler is None for pool in pools.values()) else None,
        gpu_hour_price=scenario.gpu_hour_price,
        memory=memory,
        events=result.events,
        kv_blocks_total=parts.kv_blocks,
        replicas=result.replicas,
        asleep=asleep,
    )
    drawn = energy.compute(
        result.requests,
        result.steps,
        result.replicas,
        result.powers,
        electricity_price=scenario.electricity_price,
        asleep=asleep,
    )
    if drawn is not None:
        numbers["energy"] = drawn
    if scenario.fleet.weight_cache is not None:
        numbers["weights"] = weight_metrics.compute(result.requests, result.events)
    if any(pool.autoscaler is not None or pool.cold_start is not None for pool in pools.values()):
        numbers["scaling"] = scaling_metrics.compute(
            result.requests,
            result.steps,
            result.replicas,
            result.events,
            initial={name: pool.replicas for name, pool in pools.items()},
            asleep=asleep,
        )
    sizes = {pool.kind.engine.block_size for pool in parts.pools if pool.kind.engine.kv_offload is not None}
    if len(sizes) == 1:
        numbers["kv_offload"] = offload_metrics.compute(result.requests, result.events, block_size=sizes.pop())
    requests = result.requests
    if scenario.fleet.disaggregation is not None:
        numbers["kv_transfer"] = transfer_metrics.compute(result.requests, result.events)
    if scenario.fleet.sites:
        wanted = deadlines(scenario.fleet.placement or PlacementSettings(), trace.requests)
        requests = placement_metrics.with_places(requests, wanted, result.replicas)
        numbers["placement"] = placement_metrics.compute(requests, result.replicas, asleep)
    if scenario.fleet.clients is not None or scenario.fleet.failures is not None:
        numbers["reliability"] = reliability_metrics.compute(result.requests, result.events, result.replicas)
    if any(pool.kind.engine.speculative is not None for pool in parts.pools):
        numbers["speculation"] = speculation_metrics.compute(result.steps, result.events)
    if result.kv_use is not None:
        numbers["kv"]["use"] = result.kv_use
    return Run(
        requests,
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
    requests = trace.requests
    if any(pool.kind.engine.max_loras is not None for pool in parts.pools):
        requests = with_adapters(requests, parts.pools[0].deployment.step_times.model.name)
    policies = {pool.kind.engine.scheduling_policy for pool in parts.pools}
    requests = with_order_columns(requests, policies, scenario.slo.ttft)
    return Fleet(requests, with_failures(scenario.fleet, parts.make), seed=scenario.seed, leap=may_leap).run()
