"""From a scenario to a run: read the trace, compile the step times, simulate, measure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from calibrate.copy_law import CopyLaw
from calibrate.latency import StepLatency
from calibrate.memory import kv_block_count, working_memory
from calibrate.model import ModelShape, load_model
from calibrate.parallelism import Parallelism
from calibrate.profile import Profile, load_profile
from ground.assumption import Assumption
from ground.errors import UserError
from sim.engine.config import EngineConfig
from sim.engine.device_memory import MemorySettings
from sim.engine.shape_cache import ShapeSettings
from sim.fleet.fleet import Fleet, FleetRun
from sim.results import metrics, weight_metrics
from sim.results.folder import Run
from sim.study.engine_memory import check_contexts, has_pool, resolve_memory, resolve_shapes, unlimited_kv_blocks
from sim.study.host_weights import HostWeights
from sim.study.scenario import EngineSettings, Scenario
from sim.study.step_sources import StepSources
from traces.source import TraceSource
from traces.table import Trace


@dataclass(frozen=True)
class Deployment:
    """One engine of a scenario, ready to run: its settings, its step times, and what had to be assumed for them."""

    config: EngineConfig
    step_times: StepLatency
    assumptions: list[Assumption]
    memory: MemorySettings | None = None  # with every number, as `shapes`
    shapes: ShapeSettings | None = None


def deploy(scenario: Scenario) -> Deployment:
    """Raises UserError: the profile is of another model or lacks a kernel, or the model does not fit the device."""
    settings = scenario.engine
    model = load_model(scenario.model)
    profile = load_profile(scenario.profile, model, settings.tensor_parallel, Path())
    return deploy_profile(settings, model, profile)


def deploy_profile(settings: EngineSettings, model: ModelShape, profile: Profile) -> Deployment:
    """The same of a model and profile in memory."""
    if settings.data_parallel > 1 and not model.experts:
        raise UserError(
            f"engine.data_parallel is {settings.data_parallel} and {model.name} has no experts to share; "
            "expected 1, and fleet.replicas for engines that are independent"
        )
    parallelism = Parallelism(
        settings.tensor_parallel,
        settings.data_parallel,
        settings.expert_parallel,
        not settings.disable_custom_all_reduce,
    )
    copies = None
    if settings.swap_blocks:
        block_bytes = settings.block_size * model.kv_bytes_per_token(settings.tensor_parallel)
        copies = CopyLaw(profile, block_bytes, settings.host_bandwidth)
    step_times = StepLatency(
        profile,
        model,
        parallelism=parallelism,
        graph_sizes=settings.graph_sizes,
        graphs_decode_only=settings.graphs_decode_only,
        host_overlaps=settings.async_scheduling,
        host_overhead=settings.host_overhead,
        skew=settings.model_skew,
        copies=copies,
    )
    assumptions = list(step_times.assumptions)
    blocks = settings.kv_blocks
    if not settings.kv_cache:
        blocks = unlimited_kv_blocks(settings, model)
        if profile.device_memory is not None:
            working_memory(profile, model, settings.tensor_parallel, 0)  # refuses what does not fit
    elif settings.memory is not None and settings.memory.kv == "grown":
        blocks = unlimited_kv_blocks(settings, model)
        note = "no pool: a request's keys and values are tensors of its own, and memory alone limits them"
        assumptions.append(Assumption("engine.kv_blocks", blocks, "blocks", "assumed", note))
    elif blocks is None:
        blocks, terms = kv_block_count(
            profile,
            model,
            settings.tensor_parallel,
            settings.block_size,
            settings.gpu_memory_utilization,
            settings.max_num_batched_tokens,
            settings.max_num_seqs,
            data=settings.data_parallel,
        )
        assumptions += terms
    else:
        assumptions.append(Assumption("engine.kv_blocks", blocks, "blocks", "user", "given in the scenario"))
    config = EngineConfig(kv_blocks=blocks, **settings.limits)
    memory, shapes = settings.memory, settings.shapes
    if memory is not None:
        memory, found = resolve_memory(settings, model, profile, config)
        assumptions += found
    if shapes is not None:
        shapes, found = resolve_shapes(shapes, model, profile)
        assumptions += found
    return Deployment(config, step_times, assumptions, memory, shapes)


def load_trace(scenario: Scenario) -> Trace:
    """The requests of a scenario. The last ones are kept, since the points of a sweep mostly share them."""
    return _load_trace(scenario.trace.model_dump_json(exclude_none=True), scenario.seed)


@lru_cache(maxsize=2)
def _load_trace(source: str, seed: int) -> Trace:
    return TraceSource.model_validate_json(source).load(Path(), seed)


def run_fleet(scenario: Scenario, trace: Trace, deployment: Deployment) -> FleetRun:
    """The simulation alone. Raises UserError: a request can never run."""
    check_contexts(scenario.engine, deployment.step_times.model, trace.requests)
    cache = scenario.fleet.weight_cache
    hosted = None if cache is None else HostWeights(cache, deployment.step_times.model, trace, scenario.seed)
    sources = StepSources(
        scenario.engine, deployment.config, deployment.step_times, deployment.memory, deployment.shapes
    )
    run = Fleet(
        trace.requests,
        deployment.config,
        deployment.step_times,
        replicas=scenario.fleet.replicas,
        router=scenario.fleet.router,
        seed=scenario.seed,
        costs=sources.make,
        weights=None if hosted is None else hosted.make,
        leap=sources.may_leap,
    ).run()
    return replace(run, memory=sources.memory_table(), assumptions=() if hosted is None else hosted.assumptions)


def simulate(scenario: Scenario, trace: Trace | None = None) -> Run:
    """Simulate a scenario, on its own trace unless another is given.

    Raises:
        UserError: the trace, profile or model cannot be read or do not fit each other, or a request can never run.
    """
    trace = trace or load_trace(scenario)
    deployment = deploy(scenario)
    result = run_fleet(scenario, trace, deployment)
    assumptions = [
        *deployment.assumptions,
        *result.assumptions,
        *(
            Assumption(f"latency.extrapolated.{kernel}", count, "look-ups", "assumed", "outside the measured grid")
            for kernel, count in deployment.step_times.extrapolated.items()
            if count
        ),
        *(
            Assumption("trace.dropped", count, "rows", "assumed", f"left out of {trace.source}: {reason}")
            for reason, count in trace.dropped.items()
        ),
    ]
    blocks = deployment.config.kv_blocks * scenario.engine.data_parallel * scenario.fleet.replicas
    numbers = metrics.compute(
        result.requests,
        result.steps,
        slo=scenario.slo,
        gpus=scenario.gpus,
        gpu_hour_price=scenario.gpu_hour_price,
        memory=result.memory,
        events=result.events,
        kv_blocks_total=blocks if has_pool(scenario.engine) else None,
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
        memory=result.memory,
        sessions=result.sessions,
    )
