"""The weight cache under random loads: nothing is lost, nothing overflows, and what it does can be told otherwise."""

from collections import OrderedDict
from typing import Any

import polars as pl
import pytest
from engine_workloads import LinearStepTimes, configs, traces
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal
from weight_runs import SIZE, WEIGHT_KINDS, cache_settings, loads, requests_for, run, told, with_models

from sim.engine.config import EngineConfig
from sim.fleet.fleet import FleetRun
from sim.fleet.weights.models import Models

TIMES = LinearStepTimes()
MODEL_NAMES = st.lists(st.sampled_from("abcdef"), min_size=20, max_size=60)


def held(result: FleetRun, replica: int) -> list[tuple[int, int]]:
    """(bytes, models) in one host's memory after each change; what leaves at an instant leaves before what comes."""
    changes = (
        result.events.filter(
            (pl.col("replica") == replica) & pl.col("kind").is_in(["weights_loaded", "weights_evicted"])
        )
        .with_columns(sign=pl.when(pl.col("kind") == "weights_loaded").then(1).otherwise(-1))
        .select(pl.col("amount") * pl.col("sign"), "sign")
    )
    return list(zip(changes["amount"].cum_sum(), changes["sign"].cum_sum(), strict=True))


@settings(max_examples=150, deadline=None)
@given(configs(), traces(id_tokens=16), cache_settings(), st.integers(1, 3))
def test_every_request_runs_and_the_memory_never_overflows(
    config: EngineConfig, trace: pl.DataFrame, cache: dict[str, Any], replicas: int
) -> None:
    trace = with_models(trace)
    result = run(trace, cache, config=config, times=TIMES, replicas=replicas)
    requests = result.requests
    assert requests["status"].to_list() == ["finished"] * len(trace)  # so no load waits for ever
    assert requests["arrival"].to_list() == trace["arrival"].to_list()

    waits = told(result, "model_load")
    assert waits["request_id"].is_unique().all()
    waited = requests.join(waits, on="request_id", suffix="_wait").with_columns(
        until=pl.col("time") + pl.col("seconds")
    )
    assert (waited["time"] == waited["arrival"]).all() and (waits["seconds"] >= 0).all()
    assert (waited["first_scheduled"] >= waited["until"] - 1e-9).all()
    if cache["load_while_serving"]:
        assert not (waits["why"] == "behind").any()

    for replica in range(replicas):
        for size, count in held(result, replica):
            assert 0 <= size <= (cache["capacity_bytes"] or size)
            assert 0 <= count <= (cache["capacity_models"] or count)
    begun = waits["why"].is_in(["miss", "stale", "stampede"]).sum()
    assert len(loads(result)) == begun
    if cache["single_flight"]:
        assert not (waits["why"] == "stampede").any()
        assert not (told(result, "weights_evicted")["why"] == "copy").any()


@settings(max_examples=80, deadline=None)
@given(configs(), traces(id_tokens=16), cache_settings(single_flight=True, load_while_serving=True), st.integers(1, 3))
def test_with_single_flight_a_request_waits_for_one_load(
    config: EngineConfig, trace: pl.DataFrame, cache: dict[str, Any], replicas: int
) -> None:
    result = run(with_models(trace), cache, config=config, times=TIMES, replicas=replicas)
    ends = [(row["replica"], row["model"], row["time"] + row["seconds"]) for row in loads(result).iter_rows(named=True)]
    for row in told(result, "model_load").iter_rows(named=True):
        until = row["time"] + row["seconds"]
        later = [end for replica, model, end in ends if (replica, model) == (row["replica"], row["model"])]
        assert any(end == pytest.approx(until, abs=1e-9) for end in later)


@settings(max_examples=80, deadline=None)
@given(configs(block_size=4), traces(), cache_settings(), st.integers(1, 3))
def test_leap_equals_step(config: EngineConfig, trace: pl.DataFrame, cache: dict[str, Any], replicas: int) -> None:
    trace = with_models(trace)
    leapt, stepped = (
        run(trace, cache, config=config, times=TIMES, replicas=replicas, leap=leap) for leap in (True, False)
    )
    assert_frame_equal(leapt.requests, stepped.requests, check_exact=True)
    of_weights = pl.col("kind").is_in(WEIGHT_KINDS)
    assert_frame_equal(leapt.events.filter(of_weights), stepped.events.filter(of_weights), check_exact=True)


@settings(max_examples=80, deadline=None)
@given(
    configs(),
    traces(id_tokens=16),
    cache_settings(capacity_bytes=None, capacity_models=None, load_bandwidth="unlimited", load_latency=0.0),
    st.integers(1, 3),
)
def test_loads_that_take_no_time_change_nothing(
    config: EngineConfig, trace: pl.DataFrame, cache: dict[str, Any], replicas: int
) -> None:
    trace = with_models(trace)
    with_cache = run(trace, cache, config=config, times=TIMES, replicas=replicas)
    without = run(trace, None, config=config, times=TIMES, replicas=replicas)
    assert_frame_equal(with_cache.requests, without.requests, check_exact=True)
    assert_frame_equal(with_cache.steps, without.steps, check_exact=True)
    others = with_cache.events.filter(~pl.col("kind").is_in(WEIGHT_KINDS))
    assert_frame_equal(others, without.events, check_exact=True)


@settings(max_examples=40, deadline=None)
@given(configs(), traces(id_tokens=16), st.floats(0.001, 1.0), st.floats(1.0, 20.0))
def test_a_shorter_ttl_loads_more_often(
    config: EngineConfig, trace: pl.DataFrame, ttl: float, times_longer: float
) -> None:
    trace = with_models(trace)
    runs = run(trace, None, config=config, times=TIMES).requests.with_columns(model=trace["model"])

    def idle_at_least(ttl: float) -> int:
        """Loads there must be: one for each model, and one for each of its pauses of `ttl`."""
        count = 0
        for _, of_model in runs.sort("arrival", "request_id").group_by("model", maintain_order=True):
            busy_until = None
            for arrival, finish in of_model.select("arrival", "finish").iter_rows():
                count += busy_until is None or busy_until + ttl <= arrival
                busy_until = finish if busy_until is None else max(busy_until, finish)
        return count

    found = []
    for each in (ttl, ttl * times_longer, None):
        result = run(trace, {"load_bandwidth": "unlimited", "ttl": each}, config=config, times=TIMES)
        found.append(len(loads(result)))
        assert found[-1] == idle_at_least(float("inf") if each is None else each)
    assert found == sorted(found, reverse=True)


@settings(max_examples=40, deadline=None)
@given(configs(), traces(id_tokens=16), st.floats(0.01, 2.0), st.integers(0, 50), st.sampled_from([200.0, "unlimited"]))
def test_every_version_that_is_asked_for_is_loaded_once(
    config: EngineConfig, trace: pl.DataFrame, every: float, seed: int, bandwidth: Any
) -> None:
    trace = with_models(trace)
    cache = {"update_every": every, "load_bandwidth": bandwidth}
    result = run(trace, cache, config=config, times=TIMES, seed=seed)
    models = Models(SIZE, {}, update_every=every, seed=seed)
    asked = {(model, models.version(model, time)) for model, time in trace.select("model", "arrival").iter_rows()}
    assert len(loads(result)) == len(asked)
    waits = told(result, "model_load")
    assert len(waits.filter(pl.col("why") == "miss")) == trace["model"].n_unique()
    # In the end the newest version of each model is there and no other.
    assert len(told(result, "weights_evicted")) == len(asked) - trace["model"].n_unique()


@given(st.floats(0.01, 100.0), st.integers(0, 100), st.lists(st.floats(0, 1000), min_size=2))
def test_versions_come_at_equal_distances(every: float, seed: int, times: list[float]) -> None:
    models = Models(1, {}, update_every=every, seed=seed)
    assert models.version("a", 0.0) == 0
    versions = [models.version("a", time) for time in sorted(times)]
    assert versions == sorted(versions)
    for time in times:
        assert models.version("a", time + every) - models.version("a", time) in (0, 1, 2)  # 1 but for rounding
        assert abs(models.version("a", time) - time / every) <= 1 + 1e-6
    assert Models(1, {}, seed=seed).version("a", 1e9) == 0


def test_models_have_new_versions_at_instants_of_their_own() -> None:
    models = Models(1, {}, update_every=1000.0, seed=3)
    first = [next(t for t in range(1001) if models.version(f"model-{n}", float(t)) == 1) for n in range(50)]
    assert len(set(first)) > 40 and min(first) < 100 and max(first) > 900
    # Whose they are depends on nothing but the name.
    alone = Models(1, {}, update_every=1000.0, seed=3)
    assert alone.version("model-7", first[7] - 1.0) == 0 and alone.version("model-7", float(first[7])) == 1


def test_lfu_keeps_what_is_asked_for_often() -> None:
    """b came once and later than a, which came twice."""
    trace = requests_for((0, "a"), (10, "a"), (20, "b"), (30, "c"), (40, "a"))
    found = {
        name: run(trace, {"eviction": name, "capacity_models": 2, "load_bandwidth": "unlimited"})
        for name in ("lru", "lfu")
    }
    assert told(found["lru"], "model_load")["model"].to_list() == ["a", "b", "c", "a"]
    assert told(found["lfu"], "model_load")["model"].to_list() == ["a", "b", "c"]


def lru_hits(names: list[str], places: int) -> list[bool]:
    cache: OrderedDict[str, None] = OrderedDict()
    hits = []
    for name in names:
        hits.append(name in cache)
        cache[name] = None
        cache.move_to_end(name)
        if len(cache) > places:
            cache.popitem(last=False)
    return hits


def lfu_hits(names: list[str], places: int) -> list[bool]:
    """Counts are forgotten with what is evicted; of equal counts the least recently used goes."""
    counts: dict[str, int] = {}
    last: dict[str, int] = {}
    hits = []
    for time, name in enumerate(names):
        hits.append(name in counts)
        if name not in counts and len(counts) == places:
            del counts[min(counts, key=lambda one: (counts[one], last[one]))]
        counts[name] = counts.get(name, 0) + 1
        last[name] = time
    return hits


@settings(max_examples=150, deadline=None)
@given(MODEL_NAMES, st.integers(1, 6), st.sampled_from([("lru", lru_hits), ("lfu", lfu_hits)]), st.booleans())
def test_hits_are_those_of_the_policy(names: list[str], places: int, policy: Any, by_bytes: bool) -> None:
    name, hits = policy
    memory = {"capacity_bytes": places * SIZE + SIZE // 2} if by_bytes else {"capacity_models": places}
    trace = requests_for(*((10.0 * index, model) for index, model in enumerate(names)))
    result = run(trace, {"load_bandwidth": "unlimited", "eviction": name, **memory})
    missed = set(told(result, "model_load")["request_id"])
    assert [index not in missed for index in range(len(names))] == hits(names, places)


@settings(max_examples=40, deadline=None)
@given(traces(id_tokens=16), cache_settings(capacity_bytes=None, capacity_models=None, update_every=None, ttl=None))
def test_what_is_loaded_before_the_run_is_never_missed(trace: pl.DataFrame, cache: dict[str, Any]) -> None:
    trace = with_models(trace)
    names = sorted(set(trace["model"]))
    config = EngineConfig(kv_blocks=100)
    cold = run(trace, cache, config=config, times=TIMES)
    some = run(trace, {**cache, "preload": names[:1]}, config=config, times=TIMES)
    all_there = run(trace, {**cache, "preload": names}, config=config, times=TIMES)
    assert set(loads(cold)["model"]) == set(names)
    assert set(loads(some)["model"]) == set(names[1:])
    assert not len(loads(all_there)) and not len(told(all_there, "model_load"))
    assert_frame_equal(all_there.requests, run(trace, None, config=config, times=TIMES).requests, check_exact=True)


@settings(max_examples=30, deadline=None)
@given(configs(), traces(id_tokens=16), cache_settings(), st.integers(0, 5))
def test_the_same_again(config: EngineConfig, trace: pl.DataFrame, cache: dict[str, Any], seed: int) -> None:
    trace = with_models(trace)
    one, two = (run(trace, cache, config=config, times=TIMES, replicas=2, seed=seed) for _ in range(2))
    assert_frame_equal(one.requests, two.requests, check_exact=True)
    assert_frame_equal(one.events, two.events, check_exact=True)
