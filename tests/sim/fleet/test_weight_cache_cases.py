"""The weight cache in small cases, worked out by hand: 100 bytes a model, 100 bytes/s, steps of one second."""

from typing import Any

import polars as pl
import pytest
from weight_runs import requests_for, run, told

from ground.errors import UserError
from sim.engine.config import EngineConfig
from sim.fleet.fleet import FleetRun
from sim.fleet.weights.models import Models
from sim.fleet.weights.settings import WeightCacheSettings


def firsts(result: FleetRun) -> list[float]:
    return result.requests["first_scheduled"].to_list()


def waits(result: FleetRun) -> list[tuple[int, float, float, str, str]]:
    columns = ("request_id", "time", "seconds", "why", "model")
    return told(result, "model_load").select(columns).sort("request_id").rows()


def moves(result: FleetRun, kind: str) -> list[tuple[float, str, str]]:
    return told(result, kind).select("time", "why", "model").rows()


def test_two_loads_share_the_bandwidth() -> None:
    """a alone has 50 of its bytes at 0.5 s, the other 50 at half the speed at 1.5 s; b then has its last 50 alone."""
    result = run(requests_for((0, "a"), (0.5, "b")), {})
    assert waits(result) == [(0, 0.0, 1.5, "miss", "a"), (1, 0.5, 1.5, "miss", "b")]
    assert told(result, "weights_loaded").select("time", "seconds", "amount", "model").rows() == [
        (0.0, 1.5, 100, "a"),
        (0.5, 1.5, 100, "b"),
    ]
    # The step that a's request begins at 1.5 s ends at 2.5 s.
    assert firsts(result) == [1.5, 2.5]
    assert result.requests["queue"].to_list() == [1.5, 2.0]


def test_who_comes_as_a_load_ends_finds_it_there() -> None:
    result = run(requests_for((0, "a"), (1, "a"), (1, "b"), (2.25, "b")), {"load_latency": 0.25})
    assert waits(result) == [(0, 0.0, 1.25, "miss", "a"), (1, 1.0, 0.25, "joined", "a"), (2, 1.0, 1.25, "miss", "b")]
    result = run(requests_for((0, "a"), (1, "a"), (1, "b"), (2, "b")), {})
    assert waits(result) == [(0, 0.0, 1.0, "miss", "a"), (2, 1.0, 1.0, "miss", "b")]


def test_the_fixed_part_of_a_load_is_not_shared() -> None:
    """b has the link for itself while a is started."""
    result = run(requests_for((0, "a"), (1, "b")), {"load_latency": 0.25})
    assert [(row[1], row[2]) for row in waits(result)] == [(0.0, 1.25), (1.0, 1.25)]


def test_a_resident_model_is_served_while_another_is_loaded() -> None:
    rows = (0, "a"), (5, "b"), (5.25, "a")
    meanwhile, after = (
        run(requests_for(*rows), {"preload": ["a"], "load_while_serving": serving}) for serving in (True, False)
    )
    assert firsts(meanwhile) == [0.0, 6.25, 5.25]  # b's is there at 6 s, in the middle of a step
    assert firsts(after) == [0.0, 6.0, 6.0]
    assert waits(after) == [(1, 5.0, 1.0, "miss", "b"), (2, 5.25, 0.75, "behind", "a")]


def test_after_the_last_load_those_who_waited_longest_go_first() -> None:
    """b's weights are there at 6.5 s, but c's are on their way until 7 s; then one request runs at a time."""
    trace = requests_for((5, "b"), (5.25, "a"), (5.5, "c"))
    one_at_a_time = EngineConfig(kv_blocks=100, max_num_seqs=1)
    result = run(trace, {"preload": ["a"], "load_while_serving": False}, config=one_at_a_time)
    assert [row[2:4] for row in waits(result)] == [(2.0, "miss"), (1.75, "behind"), (1.5, "miss")]
    assert firsts(result) == [7.0, 8.0, 9.0]


def test_requests_for_one_model_wait_for_one_load_or_start_a_stampede() -> None:
    rows = [(0, "a")] * 4
    one, stampede = (run(requests_for(*rows), {"single_flight": single}) for single in (True, False))
    assert firsts(one) == [1.0] * 4
    assert [row[3] for row in waits(one)] == ["miss", "joined", "joined", "joined"]
    assert told(one, "weights_loaded")["amount"].sum() == 100

    assert firsts(stampede) == [4.0] * 4
    assert [row[3] for row in waits(stampede)] == ["miss", "stampede", "stampede", "stampede"]
    assert told(stampede, "weights_loaded")["amount"].sum() == 400
    # One of the four copies stays.
    assert moves(stampede, "weights_evicted") == [(4.0, "copy", "a")] * 3


def test_a_stampede_that_finds_no_memory_waits_for_the_first_load() -> None:
    result = run(requests_for((0, "a"), (0.5, "a"), (0.5, "b")), {"single_flight": False, "capacity_models": 1})
    # b comes after the requests for a have run.
    assert waits(result) == [(0, 0.0, 1.0, "miss", "a"), (1, 0.5, 0.5, "joined", "a"), (2, 0.5, 2.5, "miss", "b")]
    assert moves(result, "weights_loaded") == [(0.0, "miss", "a"), (2.0, "miss", "b")]


def test_what_a_stampede_loaded_in_vain_gives_its_place_at_once() -> None:
    """Two copies of a fill the memory until 2 s, and its requests run until 11 s."""
    trace = requests_for((0, "a"), (0, "a"), (1, "b"), output_tokens=9)
    result = run(trace, {"single_flight": False, "capacity_models": 2})
    assert moves(result, "weights_loaded") == [(0.0, "miss", "a"), (0.0, "stampede", "a"), (2.0, "miss", "b")]


def test_a_model_in_use_is_not_evicted_and_loads_wait_in_turn() -> None:
    """a runs for 3 s from 1 s on. b waits for its place and c for b's; a comes again behind both."""
    trace = requests_for((0, "a"), (1.5, "b"), (1.75, "c"), (4.5, "a"), output_tokens=3)
    result = run(trace, {"capacity_models": 1})
    assert moves(result, "weights_loaded") == [
        (0.0, "miss", "a"),
        (4.0, "miss", "b"),
        (8.0, "miss", "c"),
        (12.0, "miss", "a"),
    ]
    assert moves(result, "weights_evicted") == [(4.0, "lru", "a"), (8.0, "lru", "b"), (12.0, "lru", "c")]
    assert firsts(result) == [1.0, 5.0, 9.0, 13.0]


def test_a_large_model_takes_the_place_of_several_and_of_no_more() -> None:
    cache = {"bytes_of": {"big": 150}, "capacity_bytes": 350, "load_bandwidth": "unlimited"}
    result = run(requests_for((0, "a"), (2, "b"), (4, "c"), (6, "big"), (8, "c")), cache)
    assert moves(result, "weights_evicted") == [(6.0, "lru", "a")]
    result = run(requests_for((0, "a"), (2, "b"), (4, "c"), (6, "big"), (8, "c")), {**cache, "capacity_bytes": 300})
    assert moves(result, "weights_evicted") == [(6.0, "lru", "a"), (6.0, "lru", "b")]


def test_nothing_is_evicted_while_too_little_may_be() -> None:
    """b is idle, but the 150 bytes need a's place too: so b is still there for the request at 3 s."""
    cache = {"bytes_of": {"big": 150}, "capacity_bytes": 200, "load_bandwidth": "unlimited"}
    trace = requests_for((0, "b"), (1, "a"), (2, "big"), (3, "b"))
    trace = trace.with_columns(output_tokens=pl.Series([1, 9, 1, 1]))
    result = run(trace, cache)
    assert [row[0] for row in waits(result)] == [0, 1, 2]
    assert moves(result, "weights_evicted") == [(10.0, "lru", "b"), (10.0, "lru", "a")]
    # Idle weights whose time is over meanwhile are not evicted again.
    result = run(trace[:3], {**cache, "ttl": 3.0})
    assert moves(result, "weights_evicted") == [(4.0, "ttl", "b"), (10.0, "lru", "a")]


@pytest.mark.parametrize(("ttl", "loaded"), [(1.9, 2), (2.0, 2), (2.1, 1)])
def test_idle_weights_are_dropped_when_their_time_is_over(ttl: float, loaded: int) -> None:
    """The first request has run at 2 s; the second comes at 4 s."""
    result = run(requests_for((0, "a"), (4, "a")), {"ttl": ttl})
    assert len(told(result, "weights_loaded")) == loaded
    assert moves(result, "weights_evicted") == ([(2.0 + ttl, "ttl", "a")] if loaded == 2 else [])


def test_a_new_version_is_loaded_beside_the_old_one_while_that_is_in_use() -> None:
    models = Models(100, {}, update_every=10.0, seed=0)
    update = next(time / 1000 for time in range(10_001) if models.version("a", time / 1000) == 1)
    cache = {"update_every": 10.0, "load_bandwidth": "unlimited"}
    # The first is running, or has run, when the version comes.
    trace = requests_for((update - 0.5, "a"), (update + 0.25, "a"), (update + 0.375, "a"))
    result = run(trace, cache)
    assert [row[3] for row in waits(result)] == ["miss", "stale"]
    assert moves(result, "weights_evicted") == [(pytest.approx(update + 0.5), "stale", "a")]
    # Where there is no memory for both the new one waits.
    result = run(trace, {**cache, "capacity_models": 1})
    assert [round(row[2], 6) for row in waits(result)] == [0.0, 0.25, 0.125]
    # Idle, the old one goes at once.
    result = run(requests_for((update - 2.5, "a"), (update + 0.25, "a")), {**cache, "capacity_models": 1})
    assert moves(result, "weights_evicted") == [(pytest.approx(update + 0.25), "stale", "a")]


def test_every_host_has_weights_of_its_own() -> None:
    result = run(requests_for((0, "a"), (0, "a"), (5, "a"), (5, "a")), {}, replicas=2)
    assert result.requests["replica"].to_list() == [0, 1, 0, 1]
    assert firsts(result) == [1.0, 1.0, 5.0, 5.0]
    assert told(result, "weights_loaded")["replica"].to_list() == [0, 1]


def test_models_share_no_prefix() -> None:
    trace = requests_for((0, "a"), (10, "a"), (20, "b"), (30, "b"))
    trace = trace.with_columns(
        prompt_tokens=pl.lit(40), prefix_ids=pl.Series([[7, 8]] * 4), prefix_block_tokens=pl.lit(16)
    )
    assert run(trace, {}).requests["cached_tokens"].to_list() == [0, 32, 0, 32]


def test_a_turn_waits_for_its_weights_like_any_request() -> None:
    trace = requests_for((0, "a"), (0, "b")).with_columns(
        arrival=pl.Series([0.0, None]), parent=pl.Series([None, 0]), think_time=pl.Series([None, 0.5])
    )
    result = run(trace, {})
    assert waits(result) == [(0, 0.0, 1.0, "miss", "a"), (1, 2.5, 1.0, "miss", "b")]
    assert result.requests["arrival"].to_list() == [0.0, 2.5]


def test_a_trace_may_name_no_models() -> None:
    trace = requests_for((0, "a"), (3, "a"))
    assert len(told(run(trace.drop("model"), {}), "weights_loaded")) == 1
    some = trace.with_columns(model=pl.Series([None, "a"]))
    assert told(run(some, {}), "weights_loaded")["model"].to_list() == ["default", "a"]


@pytest.mark.parametrize(
    ("cache", "said"),
    [
        ({"capacity_bytes": 99}, r"capacity_bytes is 99; expected at least the 100 bytes of model 'a'"),
        ({"capacity_bytes": 150, "bytes_of": {"b": 200}}, r"the 200 bytes of model 'b'"),
        ({"capacity_bytes": 250, "preload": ["a", "b", "x"]}, r"preload: models of 300 bytes; expected at most .*250"),
    ],
)
def test_models_that_never_fit_are_refused(cache: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        run(requests_for((0, "a"), (1, "b")), cache)


def test_models_that_nobody_asks_for_are_said() -> None:
    given = {"load_bandwidth": 1.0, "bytes_of": {"a": 5, "aa": 7}, "preload": ["b", "c"]}
    terms = WeightCacheSettings.model_validate(given).assumptions("default", 100, 0, ["a", "b", "a"])
    said = {term.name: (term.value, term.note) for term in terms if term.name.endswith("unasked")}
    assert said == {
        "fleet.weight_cache.bytes_of.unasked": (1, "of bytes_of, for which no request asks: aa"),
        "fleet.weight_cache.preload.unasked": (1, "of preload, for which no request asks: c"),
    }
    terms = WeightCacheSettings.model_validate(given).assumptions("default", 100, 0, ["a", "aa", "b", "c"])
    assert not [term for term in terms if term.name.endswith("unasked")]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "load_bandwidth"),
        ({"load_bandwidth": "fast"}, "unlimited"),
        ({"load_bandwidth": 1.0, "eviction": "fifo"}, "unknown eviction 'fifo', expected one of lru, lfu"),
        ({"load_bandwidth": 1.0, "preload": ["a", "a"]}, "expected every model once"),
        ({"load_bandwidth": 1.0, "preload": ["a", "b"], "capacity_models": 1}, "expected at most 1"),
        ({"load_bandwidth": 1.0, "ttl": 0}, "greater than 0"),
        ({"load_bandwidth": 1e-300}, "greater than or equal to 1"),
        ({"load_bandwidth": 1.0, "model_bytes": 1 << 80}, "model_bytes"),
        ({"load_bandwidth": 1.0, "bytes_of": {"a": 1 << 51}}, "bytes_of"),
        ({"load_bandwidth": 1.0, "capacity_bytes": 1 << 63}, "capacity_bytes"),
        ({"load_bandwidth": 1.0, "load_latency": 1e300}, "load_latency"),
        ({"load_bandwidth": 1.0, "update_every": 1e-300}, "update_every"),
    ],
)
def test_settings_that_mean_nothing_are_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        WeightCacheSettings.model_validate(given)
