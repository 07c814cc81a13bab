"""Engines that share experts: each schedules for itself, all take every step together, and a leap is exact for them."""

import polars as pl
import pytest
from engine_workloads import configs, traces
from group_step_times import GroupStepTimes
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal
from short_traces import trace_of
from step_sums import check_that_nothing_is_lost

from calibrate.batch import Batch
from sim.engine.config import EngineConfig
from sim.engine.lockstep import GroupPlan, LockStepScheduler
from sim.engine.request import Request
from sim.engine.scheduler import Scheduler
from sim.fleet.equal_replicas import equal_replicas
from sim.fleet.fleet import FleetRun

CONSTANT = {"base": 0.1, "per_token": 0.0, "per_kv": 0.0, "per_shared_token": 0.0}


def run(
    trace: pl.DataFrame,
    config: EngineConfig,
    *,
    leap: bool = True,
    times: GroupStepTimes | None = None,
    replicas: int = 1,
) -> FleetRun:
    return equal_replicas(trace, config, times or GroupStepTimes(), replicas=replicas, leap=leap).run()


def groups(config: EngineConfig, engines: int) -> EngineConfig:
    return config.model_copy(update={"data_parallel": engines})


@settings(max_examples=80)
@given(configs(block_size=4), traces(), st.integers(2, 3), st.integers(1, 2))
def test_leap_equals_step(config: EngineConfig, trace: pl.DataFrame, engines: int, replicas: int) -> None:
    """Synchronous and asynchronous scheduling are both among the configs."""
    leapt, stepped = (run(trace, groups(config, engines), leap=leap, replicas=replicas) for leap in (True, False))
    assert_frame_equal(leapt.requests, stepped.requests, check_exact=True)
    for column in ("steps", "prefill_tokens", "preempted"):
        assert leapt.steps[column].sum() == stepped.steps[column].sum()
    for column in ("start", "end"):
        assert set(leapt.steps[column]) <= set(stepped.steps[column])


@settings(max_examples=60)
@given(configs(), traces(id_tokens=16), st.integers(2, 3))
def test_nothing_is_lost(config: EngineConfig, trace: pl.DataFrame, engines: int) -> None:
    result = run(trace, groups(config, engines))
    check_that_nothing_is_lost(trace, config, result, engines)
    assert (result.steps["start"].to_numpy()[1:] >= result.steps["end"].to_numpy()[:-1]).all()


@settings(max_examples=60)
@given(traces(), st.integers(2, 3), st.booleans())
def test_every_token_comes_where_a_step_of_all_ends(trace: pl.DataFrame, engines: int, ahead: bool) -> None:
    """Requests of different engines, with different work, get their tokens at the same instants."""
    config = EngineConfig(kv_blocks=400, block_size=4, max_num_seqs=4, async_scheduling=ahead, data_parallel=engines)
    result = run(trace, config, leap=False)
    ends = set(result.steps["end"])
    assert set(result.requests["first_token"]) | set(result.requests["finish"]) <= ends


@st.composite
def additions(draw: st.DrawFn) -> list[tuple[int, int, int]]:
    """Each a prompt, an output, and how many steps are taken before it is added."""
    one = st.tuples(st.integers(1, 30), st.integers(1, 8), st.integers(0, 3))
    return draw(st.lists(one, min_size=1, max_size=25))


@given(additions(), st.integers(2, 4), st.integers(1, 3))
def test_a_request_goes_where_least_wait_and_run(added: list[tuple[int, int, int]], engines: int, seats: int) -> None:
    """Four that run count as one that waits; the first of equals."""
    config = EngineConfig(kv_blocks=200, max_num_seqs=seats, data_parallel=engines)
    group = LockStepScheduler(config)
    for i, (prompt, output, steps) in enumerate(added):
        for _ in range(steps):
            if plan := group.schedule(float(i)):
                group.advance(plan)
                group.complete(plan, float(i))
        counts = [(one.waiting_count, one.running_count) for one in group._schedulers]
        loads = [4 * waiting + running for waiting, running in counts]
        chosen = loads.index(min(loads))
        group.add(Request(i, float(i), prompt, output))
        after = [one.waiting_count for one in group._schedulers]
        assert after == [waiting + (engine == chosen) for engine, (waiting, _) in enumerate(counts)]
    assert group.waiting_count == sum(one.waiting_count for one in group._schedulers)
    assert group.running_count == sum(one.running_count for one in group._schedulers)
    assert group.blocks_held == sum(one.blocks_held for one in group._schedulers)


@settings(max_examples=60)
@given(configs(block_size=4), traces())
def test_a_group_of_one_is_its_scheduler(config: EngineConfig, trace: pl.DataFrame) -> None:
    group, alone = LockStepScheduler(config), Scheduler(config)
    for one in (group, alone):
        for i, (prompt, output) in enumerate(trace.select("prompt_tokens", "output_tokens").iter_rows()):
            one.add(Request(i, 0.0, prompt, output))
    step = 0
    while (theirs := alone.schedule(float(step))) is not None:
        ours = group.schedule(float(step))
        assert ours is not None and ours.batches == [
            Batch([(chunk.tokens, chunk.start) for chunk in theirs.chunks], *decoding(theirs))
        ]
        assert group.horizon(ours) == alone.horizon(theirs)
        group.advance(ours)
        alone.advance(theirs)
        finished = [[one.request_id for one in done.complete(plan, float(step))] for done, plan in
                    ((group, ours), (alone, theirs))]  # fmt: skip
        assert finished[0] == finished[1]
        step += 1
    assert group.schedule(float(step)) is None


def decoding(plan: object) -> tuple[object, ...]:
    return tuple(getattr(plan, name) for name in ("decodes", "kv_tokens", "spread"))


def test_the_slowest_engine_sets_the_pace() -> None:
    """A long prompt on one engine holds up a short one on the other."""
    config = EngineConfig(kv_blocks=200, data_parallel=2)
    times = GroupStepTimes(base=0.01, per_token=0.001, per_kv=0.0, per_shared_token=0.0001)
    result = run(trace_of((0.0, 1000, 2), (0.0, 10, 2)), config, times=times)
    # The law's engine counts one more token beside its prefill, since nothing decodes there.
    first = 0.01 + 0.001 * 1001 + 0.0001 * 1010
    second = first + 0.01 + 0.001 + 0.0001 * 2
    assert result.requests["first_token"].to_list() == pytest.approx([first, first])
    assert result.requests["finish"].to_list() == pytest.approx([second, second])


def test_beside_one_request_the_other_engine_idles() -> None:
    times = GroupStepTimes()
    result = run(trace_of((0.0, 10, 5)), EngineConfig(kv_blocks=20, data_parallel=2), times=times)
    idle = Batch((), 0, 0)
    assert [batches[1] for batches in times.asked] == [idle] * len(times.asked)
    assert [(list(batches[0].prefills), batches[0].decodes) for batches in times.asked] == [([(10, 0)], 0), ([], 1)]
    assert result.steps["steps"].to_list() == [1, 4], "and does not keep the first from leaping"


def test_an_arrival_on_an_idle_engine_cuts_the_leap_of_the_others() -> None:
    config = EngineConfig(kv_blocks=100, data_parallel=2)
    result = run(trace_of((0.0, 10, 100), (0.25, 10, 2)), config, times=GroupStepTimes(**CONSTANT))
    assert result.requests["first_scheduled"].to_list() == pytest.approx([0.0, 0.3])
    assert result.requests["finish"].to_list() == pytest.approx([10.0, 0.5])


def test_each_engine_has_a_pool_and_seats_of_its_own() -> None:
    """Two requests that fill a pool each run together on two engines and one after the other on one."""
    trace = trace_of((0.0, 60, 4), (0.0, 60, 4))
    for engines, finish in ((2, [0.4, 0.4]), (1, [0.4, 0.8])):
        config = EngineConfig(kv_blocks=4, enable_prefix_caching=False, data_parallel=engines)
        result = run(trace, config, times=GroupStepTimes(**CONSTANT))
        assert result.requests["finish"].to_list() == pytest.approx(finish)


def test_a_plan_of_the_group_is_the_sum_of_its_engines() -> None:
    group = LockStepScheduler(EngineConfig(kv_blocks=50, data_parallel=3))
    for i in range(2):
        group.add(Request(i, 0.0, 8 + i, 1))
    plan = group.schedule(0.0)
    assert isinstance(plan, GroupPlan)
    assert [own is None for own in plan.plans] == [False, False, True]
    assert [chunk.tokens for chunk in plan.chunks] == [8, 9]
    assert plan.batches == [Batch([(8, 0)], 0, 0), Batch([(9, 0)], 0, 0), Batch((), 0, 0)]
    group.advance(plan)
    assert [request.request_id for request in plan.ending] == [0, 1]
    assert group.complete(plan, 1.0) == plan.ending
    assert group.schedule(1.0) is None
