"""What a scenario leaves open of an engine's memory and shapes: from the profile, the device, or published figures."""

from __future__ import annotations

import polars as pl

from calibrate.memory import working_memory
from calibrate.model import ModelShape
from calibrate.profile import Profile
from ground.assumption import Assumption
from ground.errors import UserError
from sim.engine.config import EngineConfig
from sim.engine.device_memory import MemorySettings
from sim.engine.shape_cache import ShapeSettings
from sim.fleet.cold_start_settings import GRAPH_SECONDS, GRAPHS
from sim.study.scenario import EngineSettings

# vLLM from start to the first response, a small model whose compiled code was cached (vLLM issue 20264); the same log
# captures its 67 graphs in 17 s and 0.48 GiB.
_RESTART_SECONDS = 59.0
_CAPTURE_SECONDS = GRAPH_SECONDS / GRAPHS
_CAPTURE_BYTES = round(0.48 * (1 << 30) / GRAPHS)
_OF_VLLM = "of a small model, vLLM issue 20264; another engine or model may take far longer"


def has_pool(settings: EngineSettings) -> bool:
    """Whether keys and values have a pool of blocks on the device."""
    return settings.kv_cache and (settings.memory is None or settings.memory.kv == "pool")


def unlimited_kv_blocks(settings: EngineSettings, model: ModelShape) -> int:
    """So many KV blocks that every sequence that may run at once finds room for the model's longest context."""
    longest = max(model.max_context, settings.max_model_len or 0)
    return settings.max_num_seqs * -(-longest // settings.block_size) + settings.reserved_blocks


def check_contexts(settings: EngineSettings, model: ModelShape, requests: pl.DataFrame) -> None:
    """Raises UserError: without a pool to limit it, a request is longer than anything the model was made for."""
    if settings.memory is None or settings.memory.kv != "grown" or settings.max_model_len is not None:
        return
    too_long = requests.filter(pl.col("prompt_tokens") + pl.col("output_tokens") > model.max_context)
    if len(too_long):
        row = too_long.row(0, named=True)
        raise UserError(
            f"engine.memory.kv is grown and request {row['request_id']} has {row['prompt_tokens']} prompt + "
            f"{row['output_tokens']} output tokens ({len(too_long)} such requests); expected at most the "
            f"{model.max_context} of {model.name}; set engine.max_model_len to have them rejected"
        )


def resolve_memory(
    settings: EngineSettings, model: ModelShape, profile: Profile, config: EngineConfig
) -> tuple[MemorySettings, list[Assumption]]:
    """Memory settings with every number, and where those come from that were not given.

    Raises:
        UserError: nobody said how much memory the device has, or nothing of it is left.
    """
    given = settings.memory
    assert given is not None
    found: dict[str, float | int] = {}
    assumptions: list[Assumption] = []
    if given.device_bytes is None:
        pool = config.kv_blocks * config.block_size if has_pool(settings) else 0
        kv_bytes = pool * model.kv_bytes_per_token(settings.tensor_parallel)
        found["device_bytes"], terms = working_memory(profile, model, settings.tensor_parallel, kv_bytes)
        assumptions += terms
    for name in ("malloc_seconds", "free_seconds"):
        if getattr(given, name) is None:
            found[name] = 0.0
            note = "nobody measured what the driver's calls take: they count as nought"
            assumptions.append(Assumption(f"engine.memory.{name}", 0.0, "s", "assumed", note))
    if given.restart_seconds is None:
        found["restart_seconds"] = _RESTART_SECONDS
        note = f"from start to first response, {_OF_VLLM}"
        assumptions.append(Assumption("engine.memory.restart_seconds", _RESTART_SECONDS, "s", "assumed", note))
    if given.leak_per_minute and "leak_tensor_bytes" not in given.model_fields_set:
        size = given.leak_tensor_bytes
        note = "size of the tensors that leak as time goes by; smaller ones may fragment more"
        assumptions.append(Assumption("engine.memory.leak_tensor_bytes", size, "bytes", "assumed", note))
    if settings.swap_blocks:
        note = "copies of preempted requests in host memory outlive a restart, as if another process held them"
        assumptions.append(Assumption("engine.memory.swap_blocks", settings.swap_blocks, "blocks", "assumed", note))
    assumptions.append(
        Assumption(
            "engine.memory.activations",
            "eager Llama",
            "",
            "assumed",
            "order and lifetimes of a step's tensors are those of vLLM's eager Llama, with greedy sampling",
        )
    )
    return given.model_copy(update=found), assumptions


def capture_seconds(profile: Profile) -> float | None:
    """Mean of one CUDA graph's, where the profile holds captures."""
    table = profile.tables.get("graph")
    captures = None if table is None else table.filter(pl.col("phase") == "capture")["seconds"]
    return float(captures.to_numpy().mean()) if captures is not None and len(captures) else None


def resolve_shapes(given: ShapeSettings, model: ModelShape, profile: Profile) -> tuple[ShapeSettings, list[Assumption]]:
    """Shape settings with every number, and where those come from that were not given."""
    found: dict[str, Assumption] = {}

    def assume(name: str, value: float | int, unit: str, measured: bool, note: str) -> None:
        source = "measured" if measured else "assumed"
        found[name] = Assumption(f"engine.shapes.{name}", value, unit, source, note)  # type: ignore[arg-type]

    if given.build_seconds is None:
        seconds = capture_seconds(profile)
        if seconds is not None:
            assume("build_seconds", seconds, "s", True, f"mean of the captures that profile {profile.name} holds")
        else:
            assume("build_seconds", _CAPTURE_SECONDS, "s", False, f"17 s for 67 CUDA graphs {_OF_VLLM}")
    if given.build_bytes is None:
        assume("build_bytes", _CAPTURE_BYTES, "bytes", False, f"0.48 GiB for 67 CUDA graphs {_OF_VLLM}")
    if given.eager_launch_seconds is None:
        launch, kernels = _launch_seconds(profile), sum(call.calls for call in model.calls())
        if launch is not None:
            note = f"{kernels} kernels at the launch time that profile {profile.name} holds"
            assume("eager_launch_seconds", kernels * launch, "s", True, note)
        else:
            note = f"profile {profile.name} holds no launch times: eager steps take no longer than others"
            assume("eager_launch_seconds", 0.0, "s", False, note)
    resolved = given.model_copy(update={name: assumption.value for name, assumption in found.items()})
    return resolved, list(found.values())


def _launch_seconds(profile: Profile) -> float | None:
    """Of one kernel more, between the fewest and the most that were launched in a row."""
    table = profile.tables.get("launch")
    if table is None or len(table) < 2:
        return None
    rows = table.sort("kernels")
    kernels, seconds = rows["kernels"], rows["seconds"]
    return float((seconds[-1] - seconds[0]) / (kernels[-1] - kernels[0]))
