"""What an operator can try against a slowdown: each remedy, and which keys of a scenario it sets.

A new one is a function here and its line in `REMEDIES`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sim.engine.allocator.caching_settings import CachingSettings
from sim.study.pools import all_pools, pools_of
from sim.study.scenario import Scenario

Settings = dict[str, Any]  # dotted keys of a scenario


@dataclass(frozen=True)
class Remedy:
    """`settings` gives the keys to set; none where the scenario has the remedy already, or no use for it."""

    name: str
    text: str
    settings: Callable[[Scenario], Settings]


def _if(condition: bool, settings: Settings) -> Settings:
    return settings if condition else {}


def _kv_cache(scenario: Scenario) -> Settings:
    return _if(not scenario.engine.kv_cache, {"engine.kv_cache": True})


def _paged(scenario: Scenario) -> Settings:
    return _if(scenario.engine.kv_reservation != "paged", {"engine.kv_reservation": "paged"})


def _prefix_cache(scenario: Scenario) -> Settings:
    engine = scenario.engine
    possible = engine.kv_cache and engine.kv_reservation == "paged"
    return _if(possible and not engine.enable_prefix_caching, {"engine.enable_prefix_caching": True})


def _keep_sessions(scenario: Scenario) -> Settings:
    engine = scenario.engine
    possible = engine.kv_cache and engine.enable_prefix_caching and engine.kv_reservation == "paged"
    possible = possible and engine.kv_offload is None
    return _if(possible and engine.session_retention is None, {"engine.session_retention": {"policy": "lru"}})


def _kv_in_host_memory(scenario: Scenario) -> Settings:
    engine = scenario.engine
    others = (engine.session_retention, engine.speculative, engine.memory, engine.weight_offload, engine.pruning)
    one_engine = engine.data_parallel == engine.pipeline_parallel == 1 and scenario.fleet.disaggregation is None
    possible = one_engine and engine.enable_prefix_caching and engine.batching.policy == "continuous"
    possible = possible and engine.prefill_policy == "mixed" and engine.capacity_policy == "max_utilization"
    possible = possible and engine.scheduling_policy != "fair_share"
    possible = possible and engine.kv_offload is None and not any(others) and engine.host_bandwidth is not None
    blocks = engine.kv_blocks or 0  # how many are predicted is not known here
    return _if(possible and blocks > 0, {"engine.kv_offload.host_blocks": 4 * blocks})


def _session_ttl(scenario: Scenario) -> Settings:
    retention = scenario.engine.session_retention
    return _if(retention is not None and retention.ttl is None, {"engine.session_retention.ttl": 600.0})


def _session_priority(scenario: Scenario) -> Settings:
    retention = scenario.engine.session_retention
    return _if(
        retention is not None and retention.policy != "priority", {"engine.session_retention.policy": "priority"}
    )


def _async(scenario: Scenario) -> Settings:
    engine = scenario.engine
    return _if(not engine.async_scheduling and engine.speculative is None, {"engine.async_scheduling": True})


def _larger_budget(scenario: Scenario) -> Settings:
    return {"engine.max_num_batched_tokens": 4 * scenario.engine.max_num_batched_tokens}


def _smaller_budget(scenario: Scenario) -> Settings:
    budget = scenario.engine.max_num_batched_tokens // 4
    return _if(budget >= scenario.engine.max_num_seqs, {"engine.max_num_batched_tokens": budget})


def _more_sequences(scenario: Scenario) -> Settings:
    engine = scenario.engine
    return {
        "engine.max_num_seqs": 2 * engine.max_num_seqs,
        "engine.max_num_batched_tokens": max(engine.max_num_batched_tokens, 2 * engine.max_num_seqs),
    }


def _fewer_sequences(scenario: Scenario) -> Settings:
    engine = scenario.engine
    half = engine.max_num_seqs // 2
    settings: Settings = {"engine.max_num_seqs": half}
    cap = None if engine.batching.policy == "continuous" else engine.batching.cap
    if cap is not None and cap > half:
        settings |= {"engine.batching.cap": half}
    return _if(half > 0, settings)


def _join_at_once(scenario: Scenario) -> Settings:
    return _if(scenario.engine.batching.policy != "continuous", {"engine.batching": {"policy": "continuous"}})


def _reserve_prompt(scenario: Scenario) -> Settings:
    return _if(not scenario.engine.scheduler_reserve_full_isl, {"engine.scheduler_reserve_full_isl": True})


def _buckets(scenario: Scenario) -> Settings:
    shapes = scenario.engine.shapes
    return _if(shapes is not None and shapes.buckets == "none", {"engine.shapes.buckets": "pow2"})


def _few_shapes(scenario: Scenario) -> Settings:
    shapes = scenario.engine.shapes
    return _if(shapes is not None and shapes.keep is None, {"engine.shapes.keep": 64})


def _caching_allocator(scenario: Scenario) -> Settings:
    memory = scenario.engine.memory
    return _if(memory is not None and memory.allocator == "native", {"engine.memory.allocator": "caching"})


def _size_class_pool(scenario: Scenario) -> Settings:
    memory = scenario.engine.memory
    if memory is None or memory.allocator not in ("native", "caching"):
        return {}
    settings: Settings = {"engine.memory.allocator": "size_class"}
    if memory.allocator == "caching":  # these keys are its own
        settings |= {"engine.memory.settings": "", "engine.memory.empty_cache_every": None}
    return settings


def _expandable_segments(scenario: Scenario) -> Settings:
    memory = scenario.engine.memory
    if memory is None or memory.allocator != "caching" or CachingSettings.parse(memory.settings).expandable_segments:
        return {}
    name = "expandable_segments"
    others = [entry for entry in memory.settings.split(",") if entry.strip() and not entry.strip().startswith(name)]
    return {"engine.memory.settings": ",".join([*others, f"{name}:True"])}


def _empty_cache(scenario: Scenario) -> Settings:
    memory = scenario.engine.memory
    possible = memory is not None and memory.allocator == "caching" and memory.empty_cache_every is None
    return _if(possible, {"engine.memory.empty_cache_every": 1000})


def _no_leak(scenario: Scenario) -> Settings:
    memory = scenario.engine.memory
    leaks = memory is not None and (memory.leak_per_request or memory.leak_per_minute)
    return _if(bool(leaks), {"engine.memory.leak_per_request": 0, "engine.memory.leak_per_minute": 0})


def _bound_what_is_retained(scenario: Scenario) -> Settings:
    memory = scenario.engine.memory
    grows = memory is not None and memory.retained_requests is None
    kept = memory is not None and (memory.retain_per_request or memory.retain_per_token)
    return _if(bool(grows and kept), {"engine.memory.retained_requests": 1000})


def _forget_sessions(scenario: Scenario) -> Settings:
    work = scenario.engine.host_work
    grows = work is not None and work.per_session > 0 and work.forget_after is None
    return _if(grows, {"engine.host_work.forget_after": 600.0})


def _routed_by(router: str) -> Callable[[Scenario], Settings]:
    """In every pool that has replicas to choose from."""

    def settings(scenario: Scenario) -> Settings:
        chooses = {
            key: pool
            for key, pool in all_pools(scenario.fleet).items()
            if pool.replicas > 1 or pool.autoscaler is not None
        }
        return {f"{key}.router": router for key, pool in chooses.items() if pool.router != router}

    return settings


def _another(where: str) -> Callable[[Scenario], Settings]:
    """One more replica in each pool whose key begins so. Where an autoscaler decides how many there are it is none."""

    def settings(scenario: Scenario) -> Settings:
        own = {
            key: pool
            for key, pool in all_pools(scenario.fleet).items()
            if f"{key}.".startswith(where) and pool.autoscaler is None
        }
        return {f"{key}.replicas": pool.replicas + 1 for key, pool in own.items()}

    return settings


def _another_replica(scenario: Scenario) -> Settings:
    return {} if pools_of(scenario.fleet) else _another("fleet.")(scenario)


def _longer_model_ttl(scenario: Scenario) -> Settings:
    cache = scenario.fleet.weight_cache
    short = cache is not None and cache.ttl is not None and cache.ttl < 1800.0
    return _if(short, {"fleet.weight_cache.ttl": 1800.0})


def _larger_model_cache(scenario: Scenario) -> Settings:
    cache = scenario.fleet.weight_cache
    if cache is None:
        return {}
    names = ("capacity_bytes", "capacity_models")
    given = {name: getattr(cache, name) for name in names if getattr(cache, name) is not None}
    return {f"fleet.weight_cache.{name}": 2 * value for name, value in given.items()}


def _single_flight(scenario: Scenario) -> Settings:
    cache = scenario.fleet.weight_cache
    return _if(cache is not None and not cache.single_flight, {"fleet.weight_cache.single_flight": True})


REMEDIES: tuple[Remedy, ...] = (
    Remedy("KV cache", "keep keys and values instead of computing the whole sequence each step", _kv_cache),
    Remedy("paged KV", "KV memory in blocks as it is needed, instead of reserved in advance", _paged),
    Remedy("prefix cache", "find the blocks of equal prefixes again", _prefix_cache),
    Remedy("keep sessions", "hold a session's KV blocks between its turns", _keep_sessions),
    Remedy("KV in host memory", "four times the KV blocks behind the prefix cache", _kv_in_host_memory),
    Remedy("session TTL", "give up a session's blocks after 10 idle minutes", _session_ttl),
    Remedy("priority eviction", "give up the blocks of the least urgent sessions first", _session_priority),
    Remedy("asynchronous scheduling", "schedule the next step while this one runs", _async),
    Remedy("larger chunks", "four times the token budget of a step", _larger_budget),
    Remedy("smaller chunks", "a quarter of the token budget of a step", _smaller_budget),
    Remedy("more sequences", "twice as many at once", _more_sequences),
    Remedy("fewer sequences", "half as many at once", _fewer_sequences),
    Remedy("continuous batching", "let who waits join every step, instead of gathering for a batch", _join_at_once),
    Remedy("admit whole prompts", "admit a request only where its whole prompt finds blocks", _reserve_prompt),
    Remedy("length buckets", "pad to powers of two, so that few shapes are ever met", _buckets),
    Remedy("few shapes kept", "keep the 64 most recent shapes", _few_shapes),
    Remedy("caching allocator", "keep freed memory instead of giving it back to the driver", _caching_allocator),
    Remedy("size-class pool", "take all memory at once, and serve it in powers of two", _size_class_pool),
    Remedy("expandable segments", "let one segment grow instead of adding ever new ones", _expandable_segments),
    Remedy("empty_cache", "give cached memory back every 1,000 requests", _empty_cache),
    Remedy("stop the leak", "free what each request and each minute leaves behind for good", _no_leak),
    Remedy("bounded cache", "keep what is retained of the last 1,000 requests only", _bound_what_is_retained),
    Remedy("forget sessions", "drop the host's state of sessions idle for 10 minutes", _forget_sessions),
    Remedy("prefix-aware router", "send a request where its prefix is cached", _routed_by("prefix_aware")),
    Remedy("least-outstanding router", "send a request where the fewest wait", _routed_by("least_outstanding")),
    Remedy("longer model TTL", "keep weights for 30 idle minutes", _longer_model_ttl),
    Remedy("larger weight cache", "twice the memory for weights", _larger_model_cache),
    Remedy("single flight", "concurrent misses of a model wait for one load", _single_flight),
    Remedy("another replica", "one more engine, at its price", _another_replica),
    Remedy(
        "another prefill replica", "one more engine that computes prompts", _another("fleet.disaggregation.prefill.")
    ),
    Remedy("another decode replica", "one more engine that decodes", _another("fleet.disaggregation.decode.")),
    Remedy("another replica a site", "one more engine at each site", _another("fleet.sites.")),
)


def applicable(scenario: Scenario) -> list[tuple[Remedy, Settings]]:
    """The remedies that change anything in a scenario, and the keys that they set."""
    found = [(remedy, remedy.settings(scenario)) for remedy in REMEDIES]
    return [(remedy, settings) for remedy, settings in found if settings]
