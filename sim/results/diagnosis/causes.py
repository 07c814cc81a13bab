"""The causes of latency by name: what each one is, what it belongs to, and what usually helps against it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Cause:
    """`stack`: what it is part of, outermost first, itself last. `remedies`: keys of a scenario, the best first."""

    label: str
    meaning: str
    stack: tuple[str, ...]
    remedies: tuple[str, ...] = ()
    advice: str = ""


CAUSES: dict[str, Cause] = {
    "queueing": Cause(
        "queueing",
        "from arrival until the request was first scheduled",
        ("waiting", "queueing"),
        ("fleet.replicas", "engine.max_num_seqs", "fleet.router", "engine.max_num_batched_tokens"),
        "more replicas or seats, or a router that knows who is busy",
    ),
    "preempted": Cause(
        "waiting after preemption",
        "from a preemption until the request was admitted again",
        ("waiting", "preempted"),
        ("engine.kv_blocks", "engine.gpu_memory_utilization", "engine.max_num_seqs", "fleet.replicas"),
        "more KV blocks, or fewer sequences that share them",
    ),
    "model_load": Cause(
        "model load",
        "while the request waited for the weights of its model",
        ("waiting", "model load"),
        (
            "fleet.weight_cache.ttl",
            "fleet.weight_cache.capacity_bytes",
            "fleet.weight_cache.preload",
            "fleet.weight_cache.single_flight",
        ),
        "weights that stay: a longer time to live, a larger cache, preloading, one load for all who wait",
    ),
    "kv_fetch": Cause(
        "KV fetch",
        "while KV blocks of the prompt came from host memory or disk",
        ("waiting", "KV fetch"),
        (
            "engine.kv_offload.fetch",
            "engine.kv_offload.prefetch",
            "engine.kv_offload.host_blocks",
            "engine.kv_blocks",
        ),
        "blocks that are fetched only where that is faster than to compute them, or before they are asked for; more of "
        "them in host memory and not on disk, or on the device",
    ),
    "retry": Cause(
        "failed attempts",
        "from arrival until the attempt that was answered was sent: attempts that failed and waits between them",
        ("waiting", "failed attempts"),
        ("fleet.failures.failover", "fleet.clients.retries.backoff_base", "fleet.clients.timeout", "fleet.replicas"),
        "a router that sends on what a crash lost, shorter waits, timeouts that fit the load, or more replicas",
    ),
    "network": Cause(
        "network",
        "on the way between client and service, and KV blocks on their way from the replica that computed a prompt",
        ("waiting", "network"),
        ("fleet.placement.policy", "fleet.disaggregation.link", "fleet.disaggregation.transfer", "fleet.mesh"),
        "nearer sites, faster links between pools, KV blocks sent layer by layer, connections that are kept",
    ),
    "prefill": Cause(
        "prefill",
        "prompts computed for the first time, one's own and those of others in the same steps",
        ("prefill", "prompts"),
        (
            "engine.enable_prefix_caching",
            "engine.long_prefill_token_threshold",
            "engine.max_num_batched_tokens",
            "engine.tensor_parallel",
        ),
        "a prefix cache where prompts share beginnings, smaller chunks where prompts hold up decoding, or more GPUs",
    ),
    "recompute": Cause(
        "recompute",
        "tokens computed again: those of preempted requests, and all that came before without a KV cache",
        ("prefill", "recompute"),
        ("engine.kv_blocks", "engine.kv_cache", "engine.swap_blocks", "engine.max_num_seqs"),
        "a KV cache, more KV blocks, blocks that are swapped and not dropped, or fewer sequences at once",
    ),
    "eviction_misses": Cause(
        "eviction misses",
        "prompt tokens computed again because the prefix cache had evicted them",
        ("prefill", "eviction misses"),
        ("engine.kv_blocks", "engine.gpu_memory_utilization", "fleet.router", "fleet.replicas"),
        "more KV blocks, or a router that sends equal prefixes to the replica that has them",
    ),
    "decode_weights": Cause(
        "decode weights",
        "kernels of decoding tokens but attention: reading the weights, for one sequence as for many",
        ("decode", "weights"),
        ("engine.tensor_parallel", "engine.max_num_seqs", "model", "profile"),
        "fewer bytes of weights a GPU: tensor parallelism, a smaller or quantised model; a faster device",
    ),
    "decode_kv": Cause(
        "decode KV reads",
        "attention of decoding tokens: reading the KV cache, more with every token of context",
        ("decode", "KV reads"),
        ("engine.max_model_len", "engine.max_num_seqs", "engine.tensor_parallel", "fleet.replicas"),
        "shorter contexts, fewer of them at once, or KV heads spread over more GPUs",
    ),
    "drafting": Cause(
        "drafting",
        "tokens guessed for the next step, by a lookup or by a draft model",
        ("decode", "drafting"),
        ("engine.speculative.tokens", "engine.speculative.draft_model", "engine.speculative"),
        "fewer drafts a step, a smaller draft model, or no speculation where batches are large",
    ),
    "graph": Cause(
        "graph capture or compile",
        "shapes captured or compiled when they were met, and launches without a graph",
        ("stalls", "graph capture or compile"),
        ("engine.shapes.buckets", "engine.shapes.keep", "engine.cudagraph_capture_sizes"),
        "lengths and batches padded to a few sizes that are captured before the first request",
    ),
    "allocator": Cause(
        "allocator stalls",
        "the device allocator asked the driver for memory or gave some back",
        ("stalls", "allocator"),
        ("engine.memory.allocator", "engine.memory.settings", "engine.gpu_memory_utilization"),
        "a caching or pooled allocator, expandable segments, fewer different lengths",
    ),
    "copies": Cause(
        "swap copies",
        "KV blocks copied between device and host memory",
        ("stalls", "swap copies"),
        ("engine.swap_blocks", "engine.kv_blocks", "engine.host_bandwidth"),
        "more KV blocks so that none is swapped, a faster link to the host, or recomputing instead",
    ),
    "weight_stream": Cause(
        "weights streamed",
        "steps that waited for weights on their way from host memory",
        ("stalls", "weights streamed"),
        ("engine.weight_offload.layers", "engine.tensor_parallel", "engine.host_bandwidth", "model"),
        "fewer layers in host memory, a smaller or quantised model, more GPUs, or larger batches for the same copies",
    ),
    "restart": Cause(
        "restart",
        "the engine ran out of memory and was started anew",
        ("stalls", "restart"),
        ("engine.gpu_memory_utilization", "engine.memory.retained_requests", "engine.max_num_batched_tokens"),
        "more memory left free, the leak closed, or a restart that is planned",
    ),
    "slow_node": Cause(
        "slow node",
        "steps that took longer because their node was slow",
        ("stalls", "slow node"),
        ("fleet.router", "fleet.replicas"),
        "a router that knows who is busy, and a slow node taken out",
    ),
    "communication": Cause(
        "communication",
        "ranks that exchange hidden states, and engines that exchange experts' tokens",
        ("communication",),
        ("engine.tensor_parallel", "engine.disable_custom_all_reduce", "profile", "engine.expert_parallel"),
        "fewer ranks an engine, faster links between them, or smaller steps",
    ),
    "host": Cause(
        "host overhead",
        "the host between and beside the kernels, as far as these do not hide it",
        ("host",),
        ("engine.async_scheduling", "engine.host_work", "engine.host_overhead", "engine.max_num_seqs"),
        "scheduling one step ahead, and less work for each request and session in the engine's process",
    ),
    "before_first_token": Cause(
        "before the first token",
        "queueing and prefill, which this run's tables cannot tell apart",
        ("before the first token",),
        ("fleet.replicas", "engine.max_num_batched_tokens"),
        "to see whether it is queueing or prefill, record the engine's steps",
    ),
    "after_first_token": Cause(
        "after the first token",
        "decoding and what interrupts it, which this run's tables cannot tell apart",
        ("after the first token",),
        ("engine.max_num_seqs", "engine.tensor_parallel"),
        "to see what decoding waits for, record the engine's steps",
    ),
    "other": Cause("other", "what no cause explains", ("other",), (), "to see what it is, look at the timeline"),
}

# What a step's time went into, or a gap between two steps; the rest is what a request waited for by itself.
STEP_CAUSES = (
    "prefill",
    "recompute",
    "eviction_misses",
    "decode_weights",
    "decode_kv",
    "drafting",
    "graph",
    "allocator",
    "copies",
    "weight_stream",
    "restart",
    "slow_node",
    "communication",
    "host",
    "other",
)
