"""Fleets before whose engines a weight cache stands, and what their events say of it."""

from functools import partial
from typing import Any

import polars as pl
from engine_workloads import LinearStepTimes
from hypothesis import strategies as st

from sim.engine.config import EngineConfig
from sim.fleet.equal_replicas import equal_replicas
from sim.fleet.fleet import FleetRun
from sim.fleet.weights.cache import WeightCache
from sim.fleet.weights.models import Models, models_asked
from sim.fleet.weights.peers import WeightPeers
from sim.fleet.weights.settings import WeightCacheSettings

SIZE = 100  # bytes of a model
UNIT_STEPS = LinearStepTimes(base=1.0, per_token=0.0, per_kv=0.0)
PLAIN = EngineConfig(kv_blocks=1000)
WEIGHT_KINDS = ("model_load", "weights_loaded", "weights_evicted", "weights_sent")


def requests_for(*rows: tuple[float, str], output_tokens: int = 1) -> pl.DataFrame:
    """Requests of (arrival, model)."""
    return pl.DataFrame(
        {
            "request_id": range(len(rows)),
            "arrival": [float(arrival) for arrival, _ in rows],
            "prompt_tokens": [8] * len(rows),
            "output_tokens": [output_tokens] * len(rows),
            "model": [model for _, model in rows],
        }
    )


def run(
    trace: pl.DataFrame,
    settings: dict[str, Any] | None,
    *,
    config: EngineConfig = PLAIN,
    times: Any = UNIT_STEPS,
    seed: int = 0,
    **fleet: Any,
) -> FleetRun:
    """`settings` of the cache, None for none; a model has `SIZE` bytes where they do not say otherwise."""
    make = None
    if settings is not None:
        checked = WeightCacheSettings.model_validate({"load_bandwidth": SIZE, **settings})
        models = Models(SIZE, checked.bytes_of, update_every=checked.update_every, seed=seed)
        asked = models_asked(trace, "default")
        checked.check_fit(models, asked)
        peers = None if checked.peer_bandwidth is None else WeightPeers()
        make = partial(WeightCache, checked, models, asked, peers=peers)
    return equal_replicas(trace, config, times, weights=make, seed=seed, **fleet).run()


def told(result: FleetRun, kind: str) -> pl.DataFrame:
    """Events of one kind, with `why` and `model` apart."""
    words = pl.col("detail").str.splitn(" ", 2).struct
    return result.events.filter(pl.col("kind") == kind).with_columns(why=words[0], model=words[1])


def loads(result: FleetRun) -> pl.DataFrame:
    return told(result, "weights_loaded").filter(pl.col("why") != "preload")


def with_models(trace: pl.DataFrame) -> pl.DataFrame:
    """Four models; requests that share a prefix (`engine_workloads.traces`) ask for the same one."""
    numbers = [(ids[0] // 1000 if ids else index) % 4 for index, ids in enumerate(trace["prefix_ids"].to_list())]
    return trace.with_columns(model=pl.Series([f"model-{number}" for number in numbers], dtype=pl.String))


@st.composite
def cache_settings(draw: st.DrawFn, **fixed: Any) -> dict[str, Any]:
    """Loads of about as long as requests run; memory for all models, or too little for two at once."""
    sizes = draw(st.lists(st.integers(20, 200), min_size=4, max_size=4))
    settings = {
        "bytes_of": {f"model-{index}": size for index, size in enumerate(sizes)},
        "capacity_bytes": draw(st.none() | st.integers(max(sizes), 2 * sum(sizes))),
        "capacity_models": draw(st.none() | st.integers(1, 5)),
        "load_bandwidth": draw(st.sampled_from([300.0, 2000.0, "unlimited"])),
        "load_latency": draw(st.sampled_from([0.0, 0.0, 0.07, 0.4])),
        "load_while_serving": draw(st.booleans()),
        "single_flight": draw(st.booleans()),
        "ttl": draw(st.none() | st.sampled_from([0.001, 0.05, 0.5])),
        "eviction": draw(st.sampled_from(["lru", "lfu"])),
        "update_every": draw(st.none() | st.sampled_from([0.05, 0.3, 2.0])),
        "peer_bandwidth": draw(st.none() | st.sampled_from([200.0, 5000.0, "unlimited"])),
    }
    return {**settings, **fixed}
