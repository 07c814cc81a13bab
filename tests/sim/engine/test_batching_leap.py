"""Engines on which batches form: a leap is exact whatever opens a window, nobody is lost and nobody waits for ever."""

from typing import Any

import polars as pl
import pytest
from batching_workloads import batched, batchings, with_batching
from engine_runs import left_behind, run_engine
from engine_workloads import LinearStepTimes, computed_together, configs, traces
from hypothesis import given, settings
from hypothesis import strategies as st
from pipelined_step_times import PipelinedStepTimes
from polars.testing import assert_frame_equal
from policy_workloads import changed, policy_configs, tenant_traces
from session_workloads import conversations, retaining
from short_traces import trace_of
from speculative_runs import LinearVerifyTimes, speculating
from step_sums import check_that_nothing_is_lost, single_steps

from sim.engine.config import EngineConfig
from sim.fleet.equal_replicas import equal_replicas
from sim.fleet.fleet import FleetRun

Times = list[tuple[float, Any]]

moments = st.sampled_from([0.0, 0.01, 0.05, 0.2, 1.0]) | st.floats(0.0, 1.5)
aborts = st.lists(st.tuples(moments, st.integers(0, 29)), max_size=10)


def run(trace: pl.DataFrame, config: EngineConfig, *, leap: bool, times: Any = None, replicas: int = 1) -> FleetRun:
    return equal_replicas(trace, config, times or LinearStepTimes(), replicas=replicas, leap=leap).run()


def both(trace: pl.DataFrame, config: EngineConfig, times: Any = None, replicas: int = 1) -> FleetRun:
    """Leaping, which gives the same bits as step by step."""
    leapt, stepped = (run(trace, config, leap=leap, times=times, replicas=replicas) for leap in (True, False))
    assert_frame_equal(leapt.requests, stepped.requests, check_exact=True)
    for column in ("start", "end"):
        assert set(leapt.steps[column]) <= set(stepped.steps[column])
    return leapt


def check_memory(config: EngineConfig, result: FleetRun) -> None:
    assert set(result.requests["status"]) == {"finished"}
    if config.batching.fit_memory:  # type: ignore[union-attr]
        assert result.requests["preemptions"].sum() == 0


@settings(max_examples=50, deadline=None)
@given(batched(configs(block_size=4)), traces(), st.integers(1, 2), st.booleans())
def test_leap_equals_step_and_all_finish(config: EngineConfig, trace: pl.DataFrame, replicas: int, law: bool) -> None:
    leapt = both(trace, config, LinearStepTimes(has_law=law), replicas)
    check_that_nothing_is_lost(trace, config, leapt)


@settings(max_examples=30, deadline=None)
@given(batched(configs(block_size=4)), traces(), aborts, st.lists(st.tuples(moments, st.sampled_from([1.0, 3.0]))))
def test_clients_that_go_and_slow_nodes_cut_a_leap_exactly(
    config: EngineConfig, trace: pl.DataFrame, gone: Times, paces: Times
) -> None:
    leapt, stepped = (
        run_engine(trace, config, LinearStepTimes(), leap=leap, aborts=gone, paces=paces) for leap in (True, False)
    )
    assert leapt.times == stepped.times
    assert leapt.finished == stepped.finished
    assert single_steps(leapt.steps) == single_steps(stepped.steps)
    aborted = {number for _, number in gone}
    assert all(finish is not None or number in aborted for number, (_, _, finish) in enumerate(leapt.times))
    for engine in (leapt.engine, stepped.engine):
        assert left_behind(engine) == 0
        batches = engine.scheduler.batches
        assert batches.opens_at is None
        if batches._memory is not None:
            assert not batches._memory._inside
            assert batches._memory._free == config.kv_blocks * config.block_size


@settings(max_examples=30, deadline=None)
@given(batched(configs(block_size=4)), traces(), st.floats(0.0, 1.0))
def test_an_engine_that_stops_hears_no_window_open(config: EngineConfig, trace: pl.DataFrame, stop: float) -> None:
    leapt, stepped = (run_engine(trace, config, LinearStepTimes(), leap=leap, stop=stop) for leap in (True, False))
    assert leapt.times == stepped.times
    assert all(finish is None or finish <= stop for _, _, finish in leapt.times)


@settings(max_examples=25, deadline=None)
@given(configs(block_size=4), traces(), st.integers(2, 4), st.data())
def test_leap_equals_step_in_a_pipeline(
    config: EngineConfig, trace: pl.DataFrame, stages: int, data: st.DataObject
) -> None:
    config = config.model_copy(update={"pipeline_parallel": stages, "swap_blocks": 0})
    config = with_batching(config, data.draw(batchings(config.max_num_seqs)))
    leapt = both(trace, config, PipelinedStepTimes(count=stages))
    assert leapt.requests["status"].to_list() == ["finished"] * len(trace)


@settings(max_examples=20, deadline=None)
@given(computed_together(), st.data())
def test_leap_equals_step_where_a_blocked_head_loses_what_was_cached(
    case: tuple[EngineConfig, pl.DataFrame], data: st.DataObject
) -> None:
    config, trace = case
    both(trace, with_batching(config, data.draw(batchings(config.max_num_seqs))))


@settings(max_examples=20, deadline=None)
@given(
    batched(configs(block_size=4)),
    traces(),
    st.lists(st.none() | st.sampled_from("abcd"), min_size=30, max_size=30),
    st.integers(1, 3),
)
def test_adapters_are_passed_over_within_a_batch(
    config: EngineConfig, trace: pl.DataFrame, adapters: list[str | None], limit: int
) -> None:
    trace = trace.with_columns(adapter=pl.Series(adapters[: len(trace)], dtype=pl.String))
    leapt = both(trace, config.model_copy(update={"max_loras": limit}))
    assert leapt.requests["status"].to_list() == ["finished"] * len(trace)


@settings(max_examples=20, deadline=None)
@given(conversations(), configs(block_size=4).flatmap(retaining), st.data())
def test_idle_sessions_give_way_to_a_batch(trace: pl.DataFrame, config: EngineConfig, data: st.DataObject) -> None:
    config = with_batching(config, data.draw(batchings(config.max_num_seqs)))
    check_memory(config, both(trace, config))


@settings(max_examples=15, deadline=None)
@given(configs(block_size=4), traces(), st.sampled_from(["oracle", "pow2", "max", "none"]), st.data())
def test_leap_equals_step_in_ranges_and_without_a_cache(
    config: EngineConfig, trace: pl.DataFrame, kind: str, data: st.DataObject
) -> None:
    update: dict[str, Any] = {"swap_blocks": 0, "enable_prefix_caching": False, "kv_blocks": 8 + config.kv_blocks}
    update |= {"kv_cache": False} if kind == "none" else {"kv_reservation": kind, "max_model_len": 100}
    config = config.model_copy(update=update)
    both(trace, with_batching(config, data.draw(batchings(config.max_num_seqs))))


@settings(max_examples=30, deadline=None)
@given(policy_configs(block_size=4), tenant_traces(), st.data())
def test_any_order_and_any_sharing_of_a_step(config: EngineConfig, trace: pl.DataFrame, data: st.DataObject) -> None:
    config = with_batching(config, data.draw(batchings(config.max_num_seqs)))
    check_memory(config, both(trace, config))


@settings(max_examples=20, deadline=None)
@given(configs(block_size=4), traces(), st.integers(1, 4), st.data())
def test_drafts_find_their_slots(config: EngineConfig, trace: pl.DataFrame, tokens: int, data: st.DataObject) -> None:
    config = speculating(config, method="ngram", tokens=tokens, acceptance=0.6)
    config = with_batching(config, data.draw(batchings(config.max_num_seqs)))
    check_memory(config, both(trace, config, LinearVerifyTimes()))


@settings(max_examples=20, deadline=None)
@given(configs(block_size=4), traces(), st.integers(1, 8), st.data())
def test_a_pruned_sequence_counts_for_what_it_holds(
    config: EngineConfig, trace: pl.DataFrame, blocks: int, data: st.DataObject
) -> None:
    """The pool is smaller than a whole sequence may be, which fits all the same."""
    pruning = {"window": {"window": 4 * blocks, "sinks": 4}}
    config = changed(config, pruning=pruning, swap_blocks=0, enable_prefix_caching=False, kv_blocks=blocks + 5)
    config = with_batching(config, data.draw(batchings(config.max_num_seqs)))
    check_memory(config, both(trace, config))


@settings(max_examples=30, deadline=None)
@given(batched(configs(), fit_memory=True), traces(id_tokens=16))
def test_a_batch_that_fits_the_memory_is_never_preempted(config: EngineConfig, trace: pl.DataFrame) -> None:
    result = run(trace, config, leap=True)
    check_that_nothing_is_lost(trace, config, result)
    assert result.requests["preemptions"].sum() == 0
    assert result.steps["preempted"].sum() == 0


@pytest.mark.parametrize("ahead", [False, True])
def test_a_window_that_opens_inside_a_leap_ends_it_there(ahead: bool) -> None:
    """One decodes for 10 s in steps of 0.1 s; who comes at 0.25 s is let in a second later, at the next boundary."""
    tenths = LinearStepTimes(base=0.1, per_token=0.0, per_kv=0.0)
    window = {"policy": "fixed_window", "seconds": 1.0}
    config = EngineConfig.model_validate({"kv_blocks": 100, "batching": window, "async_scheduling": ahead})
    result = both(trace_of((0.0, 10, 100), (1.25, 10, 2)), config, tenths)
    assert result.requests["first_scheduled"].to_list() == pytest.approx([1.0, 2.3])
    assert len(result.steps) < 12, "most of its steps are leaps"


def test_a_window_that_its_cap_opened_opens_no_second_time() -> None:
    window = {"policy": "fixed_window", "seconds": 1.0, "cap": 2}
    config = EngineConfig.model_validate({"kv_blocks": 100, "batching": window})
    result = both(trace_of((0.0, 10, 100), (0.125, 10, 100)), config)
    assert result.requests["first_scheduled"].to_list() == [0.125, 0.125]
    assert result.steps["steps"].to_list() == [1, 99], "no leap is cut where it would have opened by itself"
