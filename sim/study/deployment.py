"""One engine of a scenario, ready to run: its settings, its step times, and what had to be assumed for them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from calibrate.copy_law import CopyLaw
from calibrate.latency import StepLatency
from calibrate.memory import kv_block_count, working_memory
from calibrate.model import ModelShape, load_model
from calibrate.parallelism import Parallelism
from calibrate.profile import Profile, load_profile
from calibrate.streamed_latency import freed_bytes
from ground.assumption import Assumption
from ground.errors import UserError
from sim.engine.config import EngineConfig
from sim.engine.device_memory import MemorySettings
from sim.engine.shape_cache import ShapeSettings
from sim.study.engine_memory import resolve_memory, resolve_shapes, unlimited_kv_blocks
from sim.study.interconnect import engine_collectives, step_latency_of
from sim.study.pruned_layers import resolve_pruning
from sim.study.scenario import EngineSettings, Scenario
from sim.study.speculation import draft_kv_bytes, engine_of_scenario, room_beside_draft


@dataclass(frozen=True)
class Deployment:
    """What `deploy` makes of a scenario's engine settings, model and profile."""

    config: EngineConfig
    step_times: StepLatency
    assumptions: list[Assumption]
    memory: MemorySettings | None = None  # with every number, as `shapes`
    shapes: ShapeSettings | None = None


def deploy(scenario: Scenario) -> Deployment:
    """Raises UserError: the profile is of another model or lacks a kernel, or the model does not fit the device."""
    settings = engine_of_scenario(scenario)
    model = load_model(scenario.model)
    profile = load_profile(scenario.profile, model, settings.tensor_parallel, Path())
    return deploy_profile(settings, model, profile, scenario.quality)


def deploy_profile(
    settings: EngineSettings, model: ModelShape, profile: Profile, quality: str | None = None
) -> Deployment:
    """The same of a model and profile in memory; `quality`: the file that says what pruning was measured to do."""
    if settings.data_parallel > 1 and not model.experts:
        raise UserError(
            f"engine.data_parallel is {settings.data_parallel} and {model.name} has no experts to share; "
            "expected 1, and fleet.replicas for engines that are independent"
        )
    if settings.pipeline_parallel > model.layers:
        raise UserError(
            f"engine.pipeline_parallel is {settings.pipeline_parallel} and {model.name} has {model.layers} layers; "
            "expected at least a layer for every stage"
        )
    streamed = 0 if settings.weight_offload is None else settings.weight_offload.layers
    if streamed > model.layers:
        raise UserError(
            f"engine.weight_offload.layers is {streamed} and {model.name} has {model.layers}; expected no more"
        )
    parallelism = Parallelism(
        settings.tensor_parallel,
        settings.data_parallel,
        settings.expert_parallel,
        not settings.disable_custom_all_reduce,
        settings.pipeline_parallel,
        settings.expert_exchange,
    )
    use, pruned = resolve_pruning(settings, model, quality)
    copies, tp = None, settings.tensor_parallel
    if settings.swap_blocks or settings.kv_offload is not None:
        token_bytes = model.kv_bytes_per_token(tp) if use is None else use.kv_bytes_per_token(model, tp)
        if settings.speculative is not None:
            token_bytes += draft_kv_bytes(settings.speculative, model, tp)
        block_bytes = settings.block_size * token_bytes
        copies = CopyLaw(profile, block_bytes, settings.host_bandwidth)
    collectives, linked = engine_collectives(settings, profile)
    step_times = step_latency_of(
        settings,
        profile,
        model,
        use=use,
        parallelism=parallelism,
        collectives=collectives,
        graph_sizes=settings.graph_sizes,
        graphs_decode_only=settings.graphs_decode_only,
        host_overlaps=settings.async_scheduling,
        host_overhead=settings.host_overhead,
        skew=settings.model_skew,
        copies=copies,
    )
    assumptions = [*step_times.assumptions, *linked, *pruned]
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
            stages=settings.pipeline_parallel,
            use=use,
            freed=freed_bytes(model, settings.tensor_parallel, streamed),
        )
        assumptions += terms
        if settings.speculative is not None:
            tp, size = settings.tensor_parallel, settings.block_size
            blocks, terms = room_beside_draft(blocks, settings.speculative, model, tp, size)
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
