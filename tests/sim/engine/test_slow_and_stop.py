"""Engines on a slow node and engines that crash: in a leap as step by step."""

from typing import Any

import polars as pl
import pytest
from engine_runs import EngineRun, run_engine
from engine_workloads import LinearStepTimes, configs, traces
from group_step_times import GroupStepTimes
from hypothesis import given, settings
from hypothesis import strategies as st
from pipelined_step_times import PipelinedStepTimes
from polars.testing import assert_frame_equal
from step_sums import single_steps

from sim.engine.config import EngineConfig
from sim.engine.host_work import HostWork, HostWorkSettings
from sim.engine.step_costs import StepCosts
from sim.results.recorder import EventRecorder

STEP = 0.125
CONSTANT = LinearStepTimes(base=STEP, per_token=0.0, per_kv=0.0)

instants = st.sampled_from([0.0, 0.01, 0.05, 0.2, 1.0]) | st.floats(0.0, 2.0)
paces = st.lists(st.tuples(instants, st.sampled_from([1.0, 1.5, 3.0, 10.0])), max_size=4)
aborts = st.lists(st.tuples(instants, st.integers(0, 29)), max_size=6)


def work(run: EngineRun) -> dict[str, Any]:
    return {**single_steps(run.steps), "last": run.steps["end"].max()}


def both(trace: pl.DataFrame, config: EngineConfig, times: Any, **options: Any) -> tuple[EngineRun, EngineRun]:
    leapt, stepped = (run_engine(trace, config, times, leap=leap, **options) for leap in (True, False))
    assert leapt.times == stepped.times
    assert work(leapt) == work(stepped)
    for column in ("start", "end"):
        assert set(leapt.steps[column]) <= set(stepped.steps[column])
    return leapt, stepped


def host_work(events: EventRecorder) -> StepCosts:
    return StepCosts([HostWork(HostWorkSettings(per_running=1e-3, per_session=1e-4), 0, events)])


@settings(max_examples=75, deadline=None)
@given(configs(block_size=4), traces(), paces, aborts, st.booleans(), st.booleans())
def test_slow_leap_equals_step(
    config: EngineConfig,
    trace: pl.DataFrame,
    slow: list[tuple[float, float]],
    gone: list[tuple[float, int]],
    law: bool,
    costs: bool,
) -> None:
    options = {"costs": host_work} if costs else {}
    leapt, stepped = both(trace, config, LinearStepTimes(has_law=law), paces=slow, aborts=gone, **options)
    longer = [float(run.events.filter(kind="slowed")["seconds"].sum()) for run in (leapt, stepped)]
    assert longer[0] == pytest.approx(longer[1], abs=1e-9)


@settings(max_examples=30, deadline=None)
@given(configs(block_size=4), traces(), paces, st.integers(2, 3), st.none() | instants)
def test_in_lock_step_too(
    config: EngineConfig, trace: pl.DataFrame, slow: list[tuple[float, float]], engines: int, stop: float | None
) -> None:
    both(trace, config.model_copy(update={"data_parallel": engines}), GroupStepTimes(), paces=slow, stop=stop)


@settings(max_examples=40, deadline=None)
@given(configs(block_size=4), traces(), paces, aborts, st.integers(2, 4), st.none() | instants)
def test_in_a_pipeline_too(
    config: EngineConfig,
    trace: pl.DataFrame,
    slow: list[tuple[float, float]],
    gone: list[tuple[float, int]],
    stages: int,
    stop: float | None,
) -> None:
    staged = config.model_copy(update={"pipeline_parallel": stages, "swap_blocks": 0})
    both(trace, staged, PipelinedStepTimes(count=stages), paces=slow, aborts=gone, stop=stop)


@settings(max_examples=75, deadline=None)
@given(configs(block_size=4), traces(), instants, paces, aborts, st.sampled_from(["paged", "oracle", "pow2"]))
def test_what_ended_before_a_crash_is_written(
    config: EngineConfig,
    trace: pl.DataFrame,
    stop: float,
    slow: list[tuple[float, float]],
    gone: list[tuple[float, int]],
    kv: str,
) -> None:
    if kv != "paged":
        update = {"kv_reservation": kv, "swap_blocks": 0, "enable_prefix_caching": False}
        update |= {"kv_blocks": config.kv_blocks + 16}  # what is rounded up must fit too
        config = config.model_copy(update=update)
    leapt, stepped = both(trace, config, LinearStepTimes(), stop=stop, paces=slow, aborts=gone, costs=host_work)
    assert all(end <= stop for end in stepped.steps["end"])
    assert leapt.finished == stepped.finished
    use, exact = leapt.engine.reservation_use, stepped.engine.reservation_use
    if use is not None and exact is not None and not gone:
        # Within a row tokens are taken to grow with time, and its steps grow a little longer.
        assert use.used == pytest.approx(exact.used, rel=0.02, abs=1e-3)
        assert use.coming == pytest.approx(exact.coming, rel=0.02, abs=1e-3)
    host = [float(run.events.filter(kind="host")["seconds"].sum()) for run in (leapt, stepped)]
    assert host[0] == pytest.approx(host[1], abs=1e-9)


@settings(max_examples=30, deadline=None)
@given(configs(block_size=4), traces(), st.sampled_from([2.0, 4.0]))
def test_a_slow_node_takes_its_factor_for_everything(config: EngineConfig, trace: pl.DataFrame, factor: float) -> None:
    """Where all arrive at once, every instant is the factor times what it was."""
    at_once = trace.with_columns(arrival=pl.lit(0.0))
    whole = run_engine(at_once, config, LinearStepTimes(), leap=True)
    slow = run_engine(at_once, config, LinearStepTimes(), leap=True, paces=[(0.0, factor)])
    for fast_times, slow_times in zip(whole.times, slow.times, strict=True):
        assert slow_times == pytest.approx([factor * time for time in fast_times])
    lost = float(slow.events.filter(kind="slowed")["seconds"].sum())
    busy = float((slow.steps["end"] - slow.steps["start"]).sum())
    assert lost == pytest.approx(busy * (1 - 1 / factor))


@settings(max_examples=30, deadline=None)
@given(configs(block_size=4), traces())
def test_a_node_that_is_as_fast_as_ever_is_not_slow(config: EngineConfig, trace: pl.DataFrame) -> None:
    plain = run_engine(trace, config, LinearStepTimes(), leap=False)
    slowed = run_engine(trace, config, LinearStepTimes(), leap=False, paces=[(0.1, 1.0)])
    assert plain.times == slowed.times
    assert_frame_equal(plain.steps, slowed.steps, check_exact=True)
    assert_frame_equal(plain.events, slowed.events, check_exact=True)


@pytest.mark.parametrize("leap", [True, False])
@pytest.mark.parametrize(("ahead", "finish"), [(False, 10 * STEP + 10 * 2 * STEP), (True, 11 * STEP + 9 * 2 * STEP)])
def test_from_the_step_that_is_not_scheduled_yet(leap: bool, ahead: bool, finish: float) -> None:
    """In step 9 of twenty: the tenth is the first slow one, or the eleventh where the tenth is scheduled."""
    trace = pl.DataFrame({"request_id": [0], "arrival": [0.0], "prompt_tokens": [8], "output_tokens": [20]})
    config = EngineConfig(kv_blocks=100, async_scheduling=ahead)
    run = run_engine(trace, config, CONSTANT, leap=leap, paces=[(9.5 * STEP, 2.0)])
    assert run.times[0][2] == finish


def test_a_crash_in_a_leap_writes_the_steps_that_ended() -> None:
    trace = pl.DataFrame({"request_id": [0], "arrival": [0.0], "prompt_tokens": [8], "output_tokens": [5000]})
    run = run_engine(trace, EngineConfig(kv_blocks=1000), CONSTANT, leap=True, stop=100.4 * STEP)
    assert run.steps["steps"].to_list() == [1, 99]
    assert run.steps["end"].to_list() == [STEP, 100 * STEP]
    assert run.finished == []
