"""Clients that go: what they had comes back where a real engine gives it back, in a leap as step by step."""

from collections.abc import Callable
from typing import Any

import polars as pl
import pytest
from engine_runs import EngineRun, left_behind, run_engine
from engine_workloads import LinearStepTimes, configs, traces
from group_step_times import GroupStepTimes
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal
from session_workloads import conversations, retaining
from short_traces import trace_of
from step_sums import single_steps

from calibrate.model import load_model
from sim.engine.config import EngineConfig
from sim.engine.device_memory import DeviceMemory, MemorySettings
from sim.engine.host_work import HostWork, HostWorkSettings
from sim.engine.step_costs import StepCosts
from sim.results.recorder import EventRecorder

Aborts = list[tuple[float, int]]
STEP = 0.125
CONSTANT = LinearStepTimes(base=STEP, per_token=0.0, per_kv=0.0)

aborts = st.lists(
    st.tuples(st.sampled_from([0.0, 0.01, 0.05, 0.2, 1.0]) | st.floats(0.0, 1.5), st.integers(0, 29)), max_size=20
)


def assert_leap_equals_step(
    trace: pl.DataFrame, config: EngineConfig, times: Any, gone: Aborts, **options: Any
) -> EngineRun:
    leapt, stepped = (run_engine(trace, config, times, leap=leap, aborts=gone, **options) for leap in (True, False))
    assert leapt.times == stepped.times
    assert leapt.finished == stepped.finished
    assert single_steps(leapt.steps) == single_steps(stepped.steps)
    for column in ("start", "end"):
        assert set(leapt.steps[column]) <= set(stepped.steps[column])
    for run in (leapt, stepped):
        assert left_behind(run.engine) == 0
    requests_of = pl.col("request_id").is_not_null()
    assert_frame_equal(leapt.events.filter(requests_of), stepped.events.filter(requests_of), check_exact=True)
    return leapt


@settings(max_examples=100, deadline=None)
@given(configs(block_size=4), traces(), aborts, st.booleans())
def test_leap_equals_step(config: EngineConfig, trace: pl.DataFrame, gone: Aborts, law: bool) -> None:
    run = assert_leap_equals_step(trace, config, LinearStepTimes(has_law=law), gone)
    aborted = {number for _, number in gone}
    for request_id, (_, _, finish) in enumerate(run.times):
        assert finish is not None or request_id in aborted


@settings(max_examples=50, deadline=None)
@given(configs(block_size=4), traces(), aborts, st.integers(2, 3))
def test_leap_equals_step_in_lock_step(config: EngineConfig, trace: pl.DataFrame, gone: Aborts, engines: int) -> None:
    assert_leap_equals_step(trace, config.model_copy(update={"data_parallel": engines}), GroupStepTimes(), gone)


@settings(max_examples=40, deadline=None)
@given(configs(block_size=4), traces(), aborts, st.sampled_from(["oracle", "pow2", "max"]))
def test_leap_equals_step_with_reserved_ranges(
    config: EngineConfig, trace: pl.DataFrame, gone: Aborts, policy: str
) -> None:
    update = {"kv_reservation": policy, "max_model_len": 100, "swap_blocks": 0, "enable_prefix_caching": False}
    update |= {"kv_blocks": config.kv_blocks + 16}  # what is rounded up must fit too
    run = assert_leap_equals_step(trace, config.model_copy(update=update), LinearStepTimes(), gone)
    use = run.engine.reservation_use
    assert use is not None
    for kind in use.KINDS:
        assert getattr(use, kind) >= -1e-9, kind


@settings(max_examples=30, deadline=None)
@given(configs(block_size=4), traces(), aborts)
def test_without_a_cache_nothing_is_left(config: EngineConfig, trace: pl.DataFrame, gone: Aborts) -> None:
    update = {"kv_cache": False, "swap_blocks": 0, "enable_prefix_caching": False}
    assert_leap_equals_step(trace, config.model_copy(update=update), LinearStepTimes(), gone)


@settings(max_examples=60, deadline=None)
@given(st.data(), conversations(closed_loop=False), aborts)
def test_leap_equals_step_where_sessions_keep_blocks(data: st.DataObject, trace: pl.DataFrame, gone: Aborts) -> None:
    config = data.draw(retaining(data.draw(configs(block_size=4))))
    columns = ["request_id", "arrival", "prompt_tokens", "output_tokens", "prefix_ids", "prefix_block_tokens"]
    run = assert_leap_equals_step(trace.select(*columns, "priority", "session"), config, LinearStepTimes(), gone)
    retention = run.engine.retention
    assert retention is not None and retention.idle == []


def memory_costs(config: EngineConfig, kv: str) -> Callable[[EventRecorder], StepCosts]:
    def make(events: EventRecorder) -> StepCosts:
        given = MemorySettings(kv=kv, device_bytes=1 << 30, malloc_seconds=1e-4, free_seconds=2e-4, restart_seconds=1.0)
        memory = DeviceMemory(given, load_model("tiny-llama"), 1, 0, events, tokens_of)
        host = HostWork(HostWorkSettings(per_running=1e-4, per_session=1e-3, forget_after=0.3), 0, events, memory)
        costs = StepCosts([host, memory])
        costs.parts = host, memory  # type: ignore[attr-defined]
        return costs

    return make


def tokens_of(plan: Any) -> tuple[int, int]:
    return plan.decodes + sum(chunk.tokens for chunk in plan.chunks), plan.decodes + len(plan.chunks)


@settings(max_examples=20, deadline=None)
@given(configs(block_size=4), traces(), aborts, st.sampled_from(["pool", "grown"]))
def test_costs_of_steps_forget_who_has_gone(config: EngineConfig, trace: pl.DataFrame, gone: Aborts, kv: str) -> None:
    plain = config.model_copy(update={"enable_prefix_caching": False, "swap_blocks": 0})
    run = assert_leap_equals_step(trace, plain, LinearStepTimes(), gone, costs=memory_costs(plain, kv))
    host, memory = run.engine._costs.parts  # type: ignore[union-attr]
    assert not host._busy
    if memory._grown is not None:
        assert memory._grown.tokens == 0 and not memory._grown._tensors and not memory._grown._decoding


@pytest.mark.parametrize("leap", [True, False])
@pytest.mark.parametrize(("ahead", "seen"), [(False, 5), (True, 6)])
def test_the_seat_of_who_has_gone_is_free_where_the_step_under_way_ends(leap: bool, ahead: bool, seen: int) -> None:
    """In step 4, of one seat: step 5 is the first without it, or step 6 if step 5 was formed before."""
    config = EngineConfig(kv_blocks=100, max_num_seqs=1, async_scheduling=ahead)
    trace = trace_of((0.0, 10, 1000), (0.1, 10, 1))
    run = run_engine(trace, config, CONSTANT, leap=leap, aborts=[(4.5 * STEP, 0)])
    assert run.times[1][1] == (seen + 1) * STEP
    assert run.finished == [1]
    assert int(run.steps.filter(pl.col("decode_seqs") > 0)["steps"].sum()) == seen - 1


@pytest.mark.parametrize("ahead", [False, True])
def test_who_goes_in_the_step_of_his_last_token_does_not_finish(ahead: bool) -> None:
    config = EngineConfig(kv_blocks=100, async_scheduling=ahead)
    trace = trace_of((0.0, 10, 3), (0.0, 10, 5))
    run = run_engine(trace, config, CONSTANT, leap=True, aborts=[(2.5 * STEP, 0)])
    assert run.finished == [1]
    assert run.times[1][2] == 5 * STEP
    assert left_behind(run.engine) == 0


def test_the_next_finds_what_the_aborted_had_computed() -> None:
    trace = trace_of((0.0, 64, 50), (1.0, 64, 2)).with_columns(
        prefix_ids=pl.Series([[1, 2, 3, 4]] * 2), prefix_block_tokens=pl.lit(16)
    )
    run = run_engine(trace, EngineConfig(kv_blocks=100), CONSTANT, leap=True, aborts=[(0.5, 0)])
    assert run.finished == [1]
    assert run.steps["prefill_tokens"].to_list()[-2:] == [16, 0], "of 64 the last 16, for its logits"


def test_a_waiting_request_that_goes_lets_the_next_one_in() -> None:
    """The head of the queue needs more blocks than are free; the one behind it does not."""
    config = EngineConfig(kv_blocks=10, enable_prefix_caching=False, scheduler_reserve_full_isl=True)
    trace = trace_of((0.0, 60, 60), (0.1, 140, 1), (0.2, 10, 1))
    for leap in (True, False):
        run = run_engine(trace, config, CONSTANT, leap=leap, aborts=[(3.4 * STEP - 0.1, 1)])
        assert run.times[2][0] == 4 * STEP
