"""From a scenario to a run: read the trace, compile the step times, simulate, measure."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from calibrate.copy_law import CopyLaw
from calibrate.latency import StepLatency
from calibrate.memory import kv_block_count
from calibrate.model import ModelShape, load_model
from calibrate.parallelism import Parallelism
from calibrate.profile import Profile, load_profile
from ground.assumption import Assumption
from ground.errors import UserError
from sim.engine.config import EngineConfig
from sim.engine.host_work import HostWork
from sim.engine.step_costs import CostSource, StepCosts
from sim.fleet.fleet import Fleet, FleetRun
from sim.results import metrics
from sim.results.folder import Run
from sim.results.recorder import EventRecorder
from sim.study.scenario import EngineSettings, Scenario
from traces.source import TraceSource
from traces.table import Trace


@dataclass(frozen=True)
class Deployment:
    """One engine of a scenario, ready to run: its settings, its step times, and what had to be assumed for them."""

    config: EngineConfig
    step_times: StepLatency
    assumptions: list[Assumption]


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
    if blocks is None:
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
    return Deployment(EngineConfig(kv_blocks=blocks, **settings.limits), step_times, assumptions)


def load_trace(scenario: Scenario) -> Trace:
    """The requests of a scenario. The last ones are kept, since the points of a sweep mostly share them."""
    return _load_trace(scenario.trace.model_dump_json(exclude_none=True), scenario.seed)


@lru_cache(maxsize=2)
def _load_trace(source: str, seed: int) -> Trace:
    return TraceSource.model_validate_json(source).load(Path(), seed)


def run_fleet(scenario: Scenario, trace: Trace, deployment: Deployment) -> FleetRun:
    """The simulation alone. Raises UserError: a request can never run."""
    return Fleet(
        trace.requests,
        deployment.config,
        deployment.step_times,
        replicas=scenario.fleet.replicas,
        router=scenario.fleet.router,
        seed=scenario.seed,
        costs=lambda replica, events: _costs(scenario.engine, replica, events),
    ).run()


def _costs(settings: EngineSettings, replica: int, events: EventRecorder) -> StepCosts | None:
    """What one replica's steps take beyond their kernels; None where nothing of it is switched on."""
    sources: list[CostSource] = []
    if settings.host_work is not None:
        sources.append(HostWork(settings.host_work, replica, events))
    return StepCosts(sources) if sources else None


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
    numbers = metrics.compute(
        result.requests,
        result.steps,
        slo=scenario.slo,
        gpus=scenario.gpus,
        gpu_hour_price=scenario.gpu_hour_price,
        kv_blocks_total=deployment.config.kv_blocks * scenario.engine.data_parallel * scenario.fleet.replicas,
    )
    return Run(result.requests, result.steps, numbers, scenario.resolved(), assumptions, events=result.events)
