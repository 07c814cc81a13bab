"""What an engine of a certain name and version does when the user sets nothing.

`vllm-0.11` has the defaults of `vllm/engine/arg_utils.py` for an API server on a GPU below 70 GiB. Its steps are
synchronous: a step is scheduled when the one before has ended. `vllm-0.19` schedules asynchronously
(`v1/engine/core.py`, `step_with_batch_queue`) and admits a request only if its whole prompt finds blocks
(`v1/core/sched/scheduler.py`, `scheduler_reserve_full_isl`). Both never give out one block, the null block of
`v1/core/block_pool.py`. `reference` is our own engine in `validate/engine`, which runs the same scheduler with the same
defaults, synchronously and without CUDA graphs.

`transformers-5.24` is Hugging Face transformers' continuous batching where torch's SDPA attends: then it neither
captures graphs nor schedules ahead (`generation/continuous_batching/initialization.py`, `decide_use_cuda_graphs` and
`decide_use_async_batching`). Its blocks are the pages of `generation/configuration_utils.py`,
`ContinuousBatchingConfig`, shared by content as `allow_block_sharing` says there; the token budget is
`_default_max_batch_tokens` of `cache.py`, the most requests a batch `FALLBACK_DEFAULTS` of `initialization.py`, and
first come, first served, in chunks, is `FIFOScheduler` of `scheduler.py`. Where it goes other ways than the scheduler
here, `docs/validation-other-engines.md` says.
"""

from collections.abc import Callable
from typing import Any

_VLLM_V1: dict[str, Any] = {
    "block_size": 16,
    "max_num_batched_tokens": 2048,
    "max_num_seqs": 256,
    "enable_chunked_prefill": True,
    "enable_prefix_caching": True,
    "scheduling_policy": "fcfs",
}

PRESETS: dict[str, dict[str, Any]] = {
    "vllm-0.11": {**_VLLM_V1, "reserved_blocks": 1},
    "vllm-0.19": {
        **_VLLM_V1,
        "reserved_blocks": 1,
        "async_scheduling": True,
        "scheduler_reserve_full_isl": True,
    },
    "reference": _VLLM_V1,
    "transformers-5.24": {
        "block_size": 256,
        "max_num_batched_tokens": 8192,
        "max_num_seqs": 1024,
        "enable_chunked_prefill": True,
        "enable_prefix_caching": True,
        "scheduling_policy": "fcfs",
    },
}

# vLLM pads steps with a prefill too (it captures all but their attention); these replay a graph only where all decode.
GRAPHS_DECODE_ONLY = frozenset({"reference"})


def _steps_of_eight(most: int) -> list[int]:
    return [1, 2, 4, *range(8, most + 1, 8)]


def _steps_of_eight_then_sixteen(most: int) -> list[int]:
    return [1, 2, 4, *range(8, min(most, 255) + 1, 8), *range(256, most + 1, 16)]


# Preset → the batch sizes up to the largest for which it captures CUDA graphs (`vllm/config/vllm.py`,
# `_set_cudagraph_sizes`).
_CAPTURE_SIZES: dict[str, Callable[[int], list[int]]] = {
    "vllm-0.11": _steps_of_eight,
    "vllm-0.19": _steps_of_eight_then_sixteen,
}


def capture_sizes(preset: str, max_num_seqs: int, max_num_batched_tokens: int) -> list[int]:
    """Batch sizes of the CUDA graphs that an engine captures when the user names none; empty: it captures none."""
    if preset not in _CAPTURE_SIZES:
        return []
    largest = min(2 * max_num_seqs, 512, max_num_batched_tokens)
    return [size for size in _CAPTURE_SIZES[preset](largest) if size <= largest]
