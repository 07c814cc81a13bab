"""What an engine of a certain name and version does when the user sets nothing.

`vllm-0.11` has the defaults of `vllm/engine/arg_utils.py` for an API server on a GPU below 70 GiB. Its steps are
synchronous: a step is scheduled when the one before has ended. `reference` is our own engine in `validate/engine`,
which runs the same scheduler with the same defaults.
"""

from typing import Any

_VLLM_V1: dict[str, Any] = {
    "block_size": 16,
    "max_num_batched_tokens": 2048,
    "max_num_seqs": 256,
    "enable_chunked_prefill": True,
    "enable_prefix_caching": True,
    "scheduling_policy": "fcfs",
}

PRESETS: dict[str, dict[str, Any]] = {"vllm-0.11": _VLLM_V1, "reference": _VLLM_V1}
