"""Asynchronous scheduling, seen from outside: what a step that was formed one step ahead does to requests' times."""

from itertools import accumulate

import polars as pl
import pytest
from engine_workloads import LinearStepTimes, traces
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal
from short_traces import trace_of

from sim.engine.config import EngineConfig
from sim.fleet.equal_replicas import equal_replicas
from sim.fleet.fleet import FleetRun

STEP = 0.125  # seconds; a power of two, so that instants are exact
CONSTANT = LinearStepTimes(base=STEP, per_token=0.0, per_kv=0.0)
AMPLE = {"kv_blocks": 10_000, "max_num_batched_tokens": 100_000, "max_num_seqs": 1000, "enable_prefix_caching": False}


def run(
    trace: pl.DataFrame, ahead: bool, *, times: LinearStepTimes = CONSTANT, leap: bool = True, **limits: object
) -> FleetRun:
    config = EngineConfig.model_validate({"kv_blocks": 1000} | limits | {"async_scheduling": ahead})
    return equal_replicas(trace, config, times, leap=leap).run()


@settings(max_examples=40)
@given(st.integers(1, 60), st.sampled_from([0.01, 0.5, 0.99]), st.booleans())
def test_an_arrival_inside_a_step_waits_for_one_more(step: int, inside: float, leap: bool) -> None:
    """Step n runs and n + 1 is formed: n + 2 is the first to know. Scheduling one at a time, it is n + 1."""
    trace = trace_of((0.0, 10, 100), ((step + inside) * STEP, 10, 3))
    for ahead in (False, True):
        _, late = run(trace, ahead, leap=leap).requests.iter_rows(named=True)
        first = step + 1 + ahead  # the step that computes its prompt
        assert late["first_token"] == (first + 1) * STEP
        assert late["finish"] == (first + 3) * STEP
        assert late["first_scheduled"] == (step + 1) * STEP, "formed when the step before it begins"


@pytest.mark.parametrize(("ahead", "seen"), [(False, 4), (True, 5)])
def test_an_arrival_at_a_boundary_is_seen_there(ahead: bool, seen: int) -> None:
    """By whoever forms a step at that instant: the one that begins now, or the one after it."""
    late = run(trace_of((0.0, 10, 100), (4 * STEP, 10, 3)), ahead).requests.row(1, named=True)
    assert late["first_token"] == (seen + 1) * STEP


@settings(max_examples=40)
@given(st.integers(1, 500), st.integers(1, 60), st.integers(8, 200), st.booleans())
def test_a_lone_request_takes_as_long(prompt: int, output: int, budget: int, leap: bool) -> None:
    trace = trace_of((0.0, prompt, output), (1000.0, output, prompt))
    limits = {"max_num_batched_tokens": budget, "max_num_seqs": 8}
    sync, ahead = (run(trace, mode, times=LinearStepTimes(), leap=leap, **limits).requests for mode in (False, True))
    assert_frame_equal(sync, ahead, check_exact=True)


def test_who_has_finished_keeps_a_seat_for_one_schedule_more() -> None:
    """Of two seats one frees when step 4 ends. Step 5 was formed before that, so the third request runs in step 6."""
    trace = trace_of((0.0, 10, 50), (0.0, 10, 5), (0.0, 10, 2))
    for ahead, first_token in ((False, 6), (True, 7)):
        result = run(trace, ahead, max_num_seqs=2)
        assert result.requests["finish"][1] == 5 * STEP
        assert result.requests["first_token"][2] == first_token * STEP


def test_where_nobody_else_runs_nothing_was_formed_ahead() -> None:
    """With one seat the engine has no next step when the last token comes: it forms one at once, and loses none."""
    trace = trace_of((0.0, 10, 5), (0.0, 10, 5), (0.1, 10, 1))
    sync, ahead = (run(trace, mode, max_num_seqs=1).requests for mode in (False, True))
    assert sync["first_token"].to_list() == ahead["first_token"].to_list() == [STEP, 6 * STEP, 11 * STEP]


def test_blocks_too_are_kept_for_one_schedule_more() -> None:
    """Each request needs a block, of which there are two."""
    trace = trace_of((0.0, 10, 50), (0.0, 10, 5), (0.0, 10, 2))
    for ahead, first_token in ((False, 6), (True, 7)):
        result = run(trace, ahead, kv_blocks=2, block_size=64, enable_prefix_caching=False)
        assert result.requests["first_token"][2] == first_token * STEP


waits = st.lists(st.sampled_from([0.0, 0.01, 0.1, 0.125, 0.3, 0.7, 2.0]) | st.floats(0.0, 1.0), min_size=1, max_size=25)


def outputs_of(data: st.DataObject, requests: int) -> list[int]:
    return data.draw(st.lists(st.integers(1, 12), min_size=requests, max_size=requests))


@settings(max_examples=100)
@given(waits, st.data())
def test_where_there_is_room_one_waits_for_the_step_under_way_and_the_one_formed_ahead(
    gaps: list[float], data: st.DataObject
) -> None:
    outputs = outputs_of(data, len(gaps))
    trace = trace_of(*((arrival, 10, output) for arrival, output in zip(accumulate(gaps), outputs, strict=True)))
    for ahead in (False, True):
        requests = run(trace, ahead, **AMPLE).requests
        assert requests["ttft"].is_between(STEP - 1e-9, (2 + ahead) * STEP + 1e-9).all()
        expected = [(output - 1) * STEP for output in outputs]
        assert (requests["finish"] - requests["first_token"]).to_list() == pytest.approx(expected)


@settings(max_examples=100)
@given(st.lists(st.integers(0, 20), min_size=1, max_size=25), st.data())
def test_nobody_is_served_earlier_where_all_arrive_between_two_steps(gaps: list[int], data: st.DataObject) -> None:
    """Elsewhere somebody can be: an engine that was idle begins its step when the first one comes, and the next must
    wait for its end, while one that still runs takes both into the step after."""
    outputs = outputs_of(data, len(gaps))
    trace = trace_of(*((at * STEP, 10, output) for at, output in zip(accumulate(gaps), outputs, strict=True)))
    sync, ahead = (run(trace, mode, **AMPLE).requests for mode in (False, True))
    assert sync["ttft"].to_list() == [STEP] * len(gaps)
    assert set(ahead["ttft"]) <= {STEP, 2 * STEP}


@settings(max_examples=60)
@given(traces(), st.booleans())
def test_all_are_served_and_as_many_tokens_are_computed(trace: pl.DataFrame, leap: bool) -> None:
    sync, ahead = (run(trace, mode, leap=leap, **AMPLE) for mode in (False, True))
    for result in (sync, ahead):
        assert result.requests["status"].to_list() == ["finished"] * len(trace)
        assert int(result.steps["prefill_tokens"].sum()) == int(trace["prompt_tokens"].sum())
        decoded = int((result.steps["steps"] * result.steps["decode_seqs"]).sum())
        assert decoded == int((trace["output_tokens"] - 1).sum())
