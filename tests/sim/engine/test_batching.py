"""Batching policies, seen from outside: who is let in when, and what an engine refuses."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest
from batching_workloads import SECONDS, with_batching
from engine_workloads import BURST, LinearStepTimes, configs, traces
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal
from short_traces import trace_of
from step_sums import single_steps

from ground.errors import UserError
from ground.spec import check_spec
from sim.engine.batching import BATCHINGS
from sim.engine.config import EngineConfig
from sim.engine.request import Request
from sim.engine.scheduler import Scheduler
from sim.fleet.equal_replicas import equal_replicas
from sim.fleet.fleet import FleetRun
from sim.study.scenario import make_scenario
from sim.study.simulate import simulate

STEP = 0.125  # seconds; a power of two, so that instants are exact
CONSTANT = LinearStepTimes(base=STEP, per_token=0.0, per_kv=0.0)
AMPLE = {"kv_blocks": 10_000, "max_num_batched_tokens": 100_000, "max_num_seqs": 1000, "enable_prefix_caching": False}


def run(trace: pl.DataFrame, batching: dict[str, Any], times: Any = CONSTANT, **limits: Any) -> FleetRun:
    config = EngineConfig.model_validate(AMPLE | limits | {"batching": batching})
    return equal_replicas(trace, config, times).run()


def begun(trace: pl.DataFrame, batching: dict[str, Any], **limits: Any) -> list[float]:
    return run(trace, batching, **limits).requests["first_scheduled"].to_list()


def fixed(seconds: float, **more: Any) -> dict[str, Any]:
    return {"policy": "fixed_window", "seconds": seconds, **more}


def test_continuous_batching_is_no_policy_that_is_asked() -> None:
    """Nothing stands between the scheduler and its queue."""
    scheduler = Scheduler(EngineConfig(kv_blocks=8))
    assert scheduler.batches is None
    assert scheduler.opens_at is None


def test_every_policy_has_its_settings() -> None:
    needed = {"fixed_window": {"seconds": 1}, "adaptive_window": {"minimum": 0, "longest": 1}}
    for name, make in BATCHINGS.items():
        config = EngineConfig.model_validate({"kv_blocks": 8, "batching": {"policy": name, **needed.get(name, {})}})
        assert config.batching.policy == name
        assert (Scheduler(config).batches is None) == (make is None)


@settings(max_examples=25, deadline=None)
@given(configs(block_size=4), traces())
def test_a_window_of_no_time_is_continuous_batching(config: EngineConfig, trace: pl.DataFrame) -> None:
    config = config.model_copy(update={"scheduling_policy": "fcfs"})
    window = with_batching(config, fixed(0.0, fit_memory=False))
    plain, windowed = (equal_replicas(trace, one, LinearStepTimes()).run() for one in (config, window))
    assert_frame_equal(plain.requests, windowed.requests, check_exact=True)
    assert single_steps(plain.steps) == single_steps(windowed.steps)


def batches_of(requests: pl.DataFrame) -> list[pl.DataFrame]:
    """Those who ran at one time, or with somebody who did: each group of them."""
    found: list[list[dict[str, Any]]] = []
    end = -1.0
    for row in requests.sort("first_scheduled", "request_id").to_dicts():
        if row["first_scheduled"] >= end:
            found.append([])
        found[-1].append(row)
        end = max(end, row["finish"])
    return [pl.DataFrame(rows, infer_schema_length=None) for rows in found]


@settings(max_examples=40, deadline=None)
@given(configs(block_size=4), traces(), st.sampled_from(["static", "idle window"]), SECONDS)
def test_nobody_joins_a_static_batch(config: EngineConfig, trace: pl.DataFrame, kind: str, seconds: float) -> None:
    cap = config.max_num_seqs
    batching: dict[str, Any] = {"policy": "static"}
    if kind != "static":
        cap = max(1, cap - 1)
        batching = fixed(seconds, cap=cap, joins="idle")
    result = equal_replicas(trace, with_batching(config, batching), LinearStepTimes()).run()
    for batch in batches_of(result.requests):
        # All of it waited when the first of it was scheduled.
        assert batch["arrival"].max() <= batch["first_scheduled"].min()  # type: ignore[operator]
        assert len(batch) <= cap


def test_a_static_batch_by_hand() -> None:
    """Three come while the first runs alone: two go together when it has ended, and the third, of whom there is no
    seat for, when the longer of them has."""
    trace = trace_of((0.0, 10, 4), (0.1, 10, 2), (0.2, 10, 8), (0.3, 10, 1))
    expected = [0.0, 4 * STEP, 4 * STEP, 12 * STEP]
    assert begun(trace, {"policy": "static"}, max_num_seqs=2) == expected
    assert begun(trace, {"policy": "continuous"}, max_num_seqs=2) == [0.0, STEP, 3 * STEP, 4 * STEP]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.sampled_from([0.0, 0.01, 0.1, 0.125, 0.3, 2.0]) | st.floats(0.0, 1.0), min_size=1, max_size=20),
    SECONDS,
    st.none() | st.integers(1, 6),
    st.booleans(),
    st.data(),
)
def test_where_there_is_room_nobody_waits_longer_than_the_window_and_the_steps_under_way(
    gaps: list[float], seconds: float, cap: int | None, ahead: bool, data: st.DataObject
) -> None:
    arrivals = [sum(gaps[: index + 1]) for index in range(len(gaps))]
    trace = trace_of(*((arrival, 10, 1 + index % 5) for index, arrival in enumerate(arrivals)))
    adaptive = {"policy": "adaptive_window", "minimum": seconds / 4, "longest": seconds + 1e-6, "cap": cap}
    for batching in (fixed(seconds, cap=cap), adaptive):
        longest = batching.get("longest", seconds)
        requests = run(trace, batching, async_scheduling=ahead).requests
        waited = requests["first_scheduled"] - requests["arrival"]
        assert waited.max() <= longest + (1 + ahead) * STEP + 1e-9  # type: ignore[operator]
        if cap is None and batching["policy"] == "fixed_window":
            # The first of all waits to the end of its window, and nobody is let in before another's has ended.
            assert waited[0] == pytest.approx(seconds)
            assert all(
                any(abs(start - arrival - seconds) <= (1 + ahead) * STEP + 1e-9 for arrival in arrivals)
                for start in requests["first_scheduled"]
            )


def test_a_fixed_window_by_hand() -> None:
    trace = trace_of((0.0, 10, 1), (0.1, 10, 1), (0.4, 10, 1), (0.9, 10, 9), (1.0, 10, 1))
    # A window of half a second from the oldest; the last two are let in together.
    assert begun(trace, fixed(0.5)) == [0.5, 0.5, 0.5, 1.4, 1.4]
    # With two the batch is full; the last waits for another until 1.5 s, and then for the step under way.
    assert begun(trace, fixed(0.5, cap=2)) == [0.1, 0.1, 0.9, 0.9, 1.525]
    assert begun(trace, fixed(9.0)) == [9.0] * 5


def test_an_arrival_that_reaches_the_cap_may_change_the_next_step() -> None:
    scheduler = Scheduler(EngineConfig.model_validate({"kv_blocks": 8, "batching": fixed(5.0, cap=2)}))
    told = [scheduler.add(Request(number, 0.1 * number, 4, 1)) for number in range(3)]
    assert told == [False, True, True]
    assert scheduler.opens_at == 0.2
    plan = scheduler.schedule(0.2)
    assert plan is not None
    assert [chunk.request.request_id for chunk in plan.chunks] == [0, 1]
    assert scheduler.opens_at == pytest.approx(5.2)


def test_whether_a_batch_joins_those_who_run() -> None:
    trace = trace_of((0.0, 10, 8), (0.125, 10, 1))
    assert begun(trace, fixed(0.25)) == [0.25, 0.25]
    trace = trace_of((0.0, 10, 8), (0.3, 10, 1))
    assert begun(trace, fixed(0.25)) == [0.25, 0.625], "0.55, at the end of the step"
    assert begun(trace, fixed(0.25, joins="idle")) == [0.25, 1.25], "when the eight steps are over"


def test_an_adaptive_window_by_hand() -> None:
    """The gaps are 1, 1 and 0.25 s, the average so 1, 1 and 0.85: who comes at 2 s waits 0.8 s, then, as another comes
    at 2.25, 0.68."""
    trace = trace_of((0.0, 10, 1), (1.0, 10, 1), (2.0, 10, 1), (2.25, 10, 1))
    window = {"policy": "adaptive_window", "minimum": 0.0625, "longest": 5.0}
    assert begun(trace, window) == pytest.approx([0.0625, 1.8, 2.68, 2.68])
    assert begun(trace, window | {"longest": 0.5}) == pytest.approx([0.0625, 1.5, 2.5, 2.5])
    assert begun(trace, window | {"cap": 2}) == pytest.approx([0.0625, 1.8, 2.25, 2.25])


def test_each_priority_has_a_lane() -> None:
    trace = trace_of((0.0, 10, 1), (0.1, 10, 1), (0.2, 10, 1), (0.3, 10, 1))
    trace = trace.with_columns(priority=pl.Series([0, 5, 0, 5]))
    assert begun(trace, fixed(0.5, cap=2)) == [0.1, 0.1, 0.3, 0.3]
    assert begun(trace, fixed(0.5, cap=2, lanes=True)) == [0.2, 0.325, 0.2, 0.325]


def test_where_seats_are_few_the_more_urgent_lane_goes_first() -> None:
    trace = trace_of((0.0, 10, 4), (0.1, 10, 1), (0.2, 10, 1)).with_columns(priority=pl.Series([0, 0, 5]))
    for batching in (fixed(0.0, lanes=True), fixed(0.0)):
        policy = "fcfs" if batching.get("lanes") else "priority"
        assert begun(trace, batching, max_num_seqs=1, scheduling_policy=policy) == [0.0, 0.625, 0.5]


TIGHT = {"kv_blocks": 4, "block_size": 16, "enable_prefix_caching": False}
GROWING = trace_of((0.0, 16, 17), (0.0, 16, 17), (0.0, 16, 17))  # each needs two blocks, the second of them later


def test_a_batch_is_no_larger_than_the_memory() -> None:
    capped, plain = (run(GROWING, {"policy": "static", "fit_memory": fits}, **TIGHT).requests for fits in (True, False))
    assert plain["preemptions"].sum() > 0
    assert capped["preemptions"].sum() == 0
    assert capped["first_scheduled"].to_list() == [0.0, 0.0, 17 * STEP]


def test_who_was_preempted_is_not_shut_out() -> None:
    """He comes back as soon as there are blocks, though the next window opens in a hundred seconds."""
    result = run(GROWING, fixed(100.0, cap=3, fit_memory=False), **TIGHT).requests
    assert result["preemptions"].sum() > 0
    assert result["finish"].max() < 10.0  # type: ignore[operator]


def test_an_arrival_that_is_refused_memory_shuts_nobody_out_for_ever() -> None:
    """The first who waits needs all of the pool, and has those behind him wait until he has had it."""
    trace = trace_of((0.0, 16, 17), (0.1, 40, 20), (0.2, 10, 2), (0.3, 10, 2))
    assert begun(trace, fixed(0.0), **TIGHT) == [0.0, 17 * STEP, 37 * STEP, 37 * STEP]


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        ({"batching": {"policy": "dynamic"}}, "batching: .*'continuous', 'static', 'fixed_window', 'adaptive_window'"),
        ({"batching": {"policy": "fixed_window"}}, "batching.seconds: Field required"),
        ({"batching": fixed(-1.0)}, "batching.seconds: .* greater than or equal to 0, found -1"),
        ({"batching": fixed(1.0, cap=0)}, "batching.cap: .* greater than 0, found 0"),
        ({"batching": fixed(1.0, cap=9), "max_num_seqs": 8}, r"batching.cap is 9; expected at most max_num_seqs \(8\)"),
        ({"batching": fixed(1.0, joins="never")}, "batching.joins: .*'idle' or 'running', found 'never'"),
        ({"batching": {"policy": "static", "cap": 4}}, "unknown key 'batching.cap'"),
        (
            {"batching": {"policy": "adaptive_window", "minimum": 2, "longest": 1}},
            r"longest is 1; expected at least minimum \(2\)",
        ),
        (
            {"batching": {"policy": "static"}, "data_parallel": 2},
            "batching.policy is static and data_parallel is given; expected one of them",
        ),
        (
            {"batching": {"policy": "static"}, "kv_offload": {"host_blocks": 9}},
            "batching.policy is static and kv_offload is given; expected one of them",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(engine: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_spec(EngineConfig, {"kv_blocks": 100, **engine}, "the engine")


def test_prompts_that_another_engine_computes_gather_behind_no_window() -> None:
    pools = {"prefill": {"replicas": 1}, "decode": {"replicas": 1}, "link": {"bandwidth": 1e9}}
    data = BURST | {"engine": {"batching": fixed(1.0)}, "fleet": {"disaggregation": pools}}
    with pytest.raises(UserError, match=r"prefill: batching\.policy is fixed_window; expected continuous"):
        simulate(make_scenario(data, {}, Path(), "the scenario"))


def test_a_scenario_says_what_its_batches_wait_for() -> None:
    """Spelled out with every default; thirty who come within a second go in batches of four."""
    batching = {"policy": "adaptive_window", "minimum": 0.01, "longest": 0.5, "cap": 4, "joins": "idle"}
    result = simulate(make_scenario(BURST | {"engine": {"batching": batching}}, {}, Path(), "the scenario"))
    spelled_out = {"factor": 0.8, "smoothing": 0.2, "lanes": False, "fit_memory": True}
    assert result.scenario["engine"]["batching"] == batching | spelled_out
    assert result.requests["status"].to_list() == ["finished"] * 30
    assert max(len(batch) for batch in batches_of(result.requests)) == 4
    plain = simulate(make_scenario(BURST, {}, Path(), "the scenario"))
    assert plain.scenario["engine"]["batching"] == {"policy": "continuous"}
