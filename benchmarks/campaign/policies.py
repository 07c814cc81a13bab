"""What is tried out in the check: policies, one a line, and the loads under which they are replayed."""

from __future__ import annotations

from typing import Any

from calibrate.microbench.grid import CUDA_GRAPH_SIZES

BASELINE = "baseline"

# Device → policy → what it sets beyond `ENGINE`, by dotted scenario key. The first is the baseline. With few blocks
# (as many as a quarter of the sequences need) requests are preempted, and offloading them has something to save.
POLICIES: dict[str, dict[str, dict[str, Any]]] = {
    "cuda": {
        BASELINE: {},
        "chunks of 512": {"engine.max_num_batched_tokens": 512},
        "32 sequences": {"engine.max_num_seqs": 32},
        "few blocks, swap": {"engine.kv_blocks": 1500, "engine.swap_blocks": 10_000},
        "few blocks, recompute": {"engine.kv_blocks": 1500},
        "priority": {"engine.scheduling_policy": "priority"},
    },
    "cpu": {
        BASELINE: {},
        "chunks of 16": {"engine.max_num_batched_tokens": 16},
        "2 sequences": {"engine.max_num_seqs": 2},
        "priority": {"engine.scheduling_policy": "priority"},
        "few blocks, swap": {"engine.kv_blocks": 10, "engine.swap_blocks": 40},
    },
}
_CUDA_SIZES = [size for size in CUDA_GRAPH_SIZES if size <= 128]
ENGINE: dict[str, dict[str, Any]] = {
    "cuda": {
        "preset": "reference",
        "max_num_batched_tokens": 2048,
        "max_num_seqs": 128,
        "cudagraph_capture_sizes": _CUDA_SIZES,
    },
    "cpu": {
        "preset": "reference",
        "max_num_batched_tokens": 128,
        "max_num_seqs": 8,
        "kv_blocks": 400,
        "cudagraph_capture_sizes": [1, 2, 4, 8],
    },
}

# Load → rate of arrivals as a share of the measured capacity, in order of worth. Capacity is the throughput of the
# baseline under overload, whose own rate is a share of the predicted one.
LOADS = {"medium": 0.7, "overload": 2.0, "low": 0.2}
# Of the policies above so many are replayed at a load, the first ones; where it says none, all.
REPLAYED: dict[str, dict[str, int]] = {"cuda": {"overload": 3, "low": 2}, "cpu": {}}

LENGTHS: dict[str, dict[str, dict[str, Any]]] = {
    "cuda": {
        "prompt": {"distribution": "lognormal", "median": 600, "sigma": 0.7, "low": 16, "high": 4000},
        "output": {"distribution": "lognormal", "median": 120, "sigma": 0.6, "low": 8, "high": 600},
    },
    "cpu": {
        "prompt": {"distribution": "lognormal", "median": 24, "sigma": 0.6, "low": 4, "high": 100},
        "output": {"distribution": "lognormal", "median": 8, "sigma": 0.5, "low": 2, "high": 20},
    },
}
# Seconds for which requests arrive, and how many of them there are at least.
SECONDS = {"cuda": 9.0, "cpu": 0.3}
FEWEST = {"cuda": 24, "cpu": 8}
EVERY_URGENT = 4  # one request in so many has a priority above the others'
