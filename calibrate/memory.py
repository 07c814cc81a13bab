"""How many KV blocks a device has room for, by vLLM's sum: what its profiling run finds left over."""

from __future__ import annotations

from dataclasses import replace

from calibrate.datasheet import find_device
from calibrate.layer_use import LayerUse
from calibrate.model import ModelShape
from calibrate.pipeline_memory import StageMemory, stage_memories
from calibrate.profile import Profile
from calibrate.profile_sources import source_of
from ground.assumption import Assumption, Source
from ground.errors import UserError

_GIB = 1 << 30
_SMALLEST_WORKING_MEMORY = 2 << 20  # a page of the device

# Memory outside torch's allocator: CUDA context and libraries on one GPU, as vLLM logs it (Gateway API Inference
# Extension, PR 550: "non-torch 0.16 GiB"), and NCCL's buffers by number of ranks (aiconfigurator, h100_sxm.yaml).
_CONTEXT_BYTES = round(0.16 * _GIB)
_NCCL_BYTES = {1: 0, 2: 342_000_000, 4: 392_000_000, 8: 392_000_000}

# vLLM's profiling run samples with top-k and top-p. Per logit it then holds, in units of 4 bytes: the model's half
# precision (1/2), float32 (1), sorted values (1) and their 8-byte indices (2), probabilities (1), their running sum
# (1), the scattered result (1) and masks (1/2).
_SAMPLER_BYTES_PER_LOGIT = 4 * 8


def activation_peak(
    model: ModelShape, tp: int, max_num_batched_tokens: int, max_num_seqs: int, *, samples: bool = True
) -> int:
    """Bytes of the larger of two peaks: an MLP on a full token budget, or the sampler on a full batch.

    The MLP holds residual, input, gate and up, and their product; the sampler sees the gathered vocabulary. A pipeline
    stage before the last `samples` nothing.
    """
    rank = model.shard(tp)
    width = rank.intermediate
    if rank.experts:
        width = rank.moe_intermediate * rank.experts_per_token
    mlp = max_num_batched_tokens * (2 * rank.hidden + 3 * width) * rank.dtype_bytes
    if not samples:
        return mlp
    hidden = max_num_batched_tokens * rank.hidden * rank.dtype_bytes
    sampler = hidden + min(max_num_seqs, max_num_batched_tokens) * model.vocab * _SAMPLER_BYTES_PER_LOGIT
    return max(mlp, sampler)


def working_memory(profile: Profile, model: ModelShape, tp: int, kv_bytes: int) -> tuple[int, list[Assumption]]:
    """Bytes of one rank for all that comes and goes: what weights and a KV pool of `kv_bytes` leave of the device.

    An engine may use all of it, also what `gpu_memory_utilization` left free when the pool was sized.

    Raises:
        UserError: nobody said how much memory the device has, or nothing of it is left.
    """
    if profile.device_memory is None:
        raise UserError(
            f"profile {profile.name}: a CPU has no natural memory for an allocator, and of this GPU nobody said how "
            "much it has; the scenario must give engine.memory.device_bytes"
        )
    weights = model.weight_bytes(tp)
    outside = _CONTEXT_BYTES + _NCCL_BYTES.get(tp, _NCCL_BYTES[8])
    left = profile.device_memory - weights - kv_bytes - outside
    if left < _SMALLEST_WORKING_MEMORY:
        raise UserError(
            f"{profile.device_memory / _GIB:.1f} GiB of {profile.device} − {weights / _GIB:.1f} of weights − "
            f"{kv_bytes / _GIB:.1f} of KV pool − {outside / _GIB:.1f} outside torch leave nothing for a step; "
            "expected fewer engine.kv_blocks, or engine.memory.device_bytes"
        )
    note = f"memory of {profile.device} beside weights, a KV pool of {kv_bytes} bytes, CUDA context and NCCL"
    return left, [Assumption("engine.memory.device_bytes", left, "bytes", "assumed", note)]


def kv_block_count(
    profile_or_device: Profile | str,
    model: ModelShape,
    tp: int,
    block_size: int,
    gpu_memory_utilization: float,
    max_num_batched_tokens: int,
    max_num_seqs: int = 256,
    *,
    data: int = 1,
    stages: int = 1,
    use: LayerUse | None = None,
    freed: int = 0,
) -> tuple[int, list[Assumption]]:
    """KV blocks of one rank, and every term of the sum; of a pipeline, on the stage that has room for fewest.

    device bytes · utilization − weights − activation peak − memory outside torch, divided by a block's bytes. CUDA
    graphs are captured after that sum was done, out of what utilization leaves free.

    Args:
        profile_or_device: a profile, or the name of a device with a bundled datasheet.
        max_num_seqs: 256 is vLLM's default.
        data: engines that share the experts, of which each GPU then holds a smaller part.
        stages: of a pipeline, each with some of the layers and their part of every block.
        use: what a pruned engine runs and keeps; of one that is no pipeline and shares no experts.
        freed: bytes of weights that are streamed from host memory and not held.

    Raises:
        UserError: a CPU profile (there is no natural size), an unknown device, or nothing left for the cache.
    """
    source: Source
    if isinstance(profile_or_device, Profile):
        if profile_or_device.device_memory is None:
            raise UserError(
                f"profile {profile_or_device.name}: a CPU has no natural number of KV blocks, and of this GPU nobody "
                "said how much memory it has; the scenario must give kv_blocks"
            )
        name, memory = profile_or_device.device, profile_or_device.device_memory
        source = source_of(profile_or_device)
    else:
        device = find_device(profile_or_device.removeprefix("datasheet:"))
        name, memory, source = device.name, device.memory, "datasheet"
    outside = _CONTEXT_BYTES + _NCCL_BYTES.get(tp * data * stages, _NCCL_BYTES[8])

    def peak_of(stage: StageMemory) -> int:
        return activation_peak(model, tp, max_num_batched_tokens, max_num_seqs, samples=stage.samples)

    def left_by(stage: StageMemory) -> float:
        return memory * gpu_memory_utilization - stage.weights - peak_of(stage) - outside

    held = stage_memories(model, tp, data, stages)
    if use is not None:
        held = [StageMemory(0, use.weight_bytes(model, tp), use.kv_bytes_per_token(model, tp), True)]
    if freed:
        held = [replace(stage, weights=stage.weights - freed) for stage in held]
    fewest = min(held, key=lambda stage: left_by(stage) / stage.kv_bytes_per_token)
    weights, activations, left = fewest.weights, peak_of(fewest), left_by(fewest)
    block_bytes = block_size * fewest.kv_bytes_per_token
    blocks = int(left // block_bytes)
    of_stage = "" if stages == 1 else f", stage {fewest.stage + 1} of {stages}"
    if blocks < 1:
        raise UserError(
            f"{model.name} at tp = {tp}{of_stage} leaves no room for KV blocks on {name}: {memory / _GIB:.1f} GiB × "
            f"{gpu_memory_utilization:g} − {weights / _GIB:.1f} of weights − {activations / _GIB:.1f} of activations − "
            f"{outside / _GIB:.1f} outside torch = {left / _GIB:.1f} GiB; expected at least one block"
        )
    return blocks, [
        Assumption("memory.device", memory, "bytes", source, f"memory of {name}"),
        Assumption(
            "memory.weights",
            weights,
            "bytes",
            "assumed",
            f"weights of {model.name}, one of {tp * data} ranks{of_stage}",
        ),
        Assumption(
            "memory.activation_peak",
            activations,
            "bytes",
            "assumed",
            f"larger of MLP at {max_num_batched_tokens} tokens and sampler at {max_num_seqs} sequences",
        ),
        Assumption("memory.non_torch", outside, "bytes", "assumed", "CUDA context 0.16 GiB, and NCCL beyond one rank"),
        Assumption("memory.graph_pool", 0, "bytes", "assumed", "CUDA graphs are captured after the pool was sized"),
        Assumption("memory.kv_blocks", blocks, "blocks", "assumed", f"what is left, in blocks of {block_bytes} bytes"),
    ]
