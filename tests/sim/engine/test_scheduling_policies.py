"""Whatever the policies: a leap is exact, everybody is served, and nothing is lost."""

import math

import polars as pl
from engine_runs import left_behind, run_engine
from engine_workloads import LinearStepTimes
from group_step_times import GroupStepTimes
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal
from policy_workloads import changed, policy_configs, tenant_traces
from step_sums import check_that_nothing_is_lost, single_steps

from sim.engine.config import EngineConfig
from sim.fleet.equal_replicas import equal_replicas


@settings(max_examples=80, deadline=None)
@given(policy_configs(block_size=4), tenant_traces(), st.integers(1, 2), st.booleans())
def test_leap_equals_step(config: EngineConfig, trace: pl.DataFrame, replicas: int, law: bool) -> None:
    times = LinearStepTimes(has_law=law)
    leapt, stepped = (
        equal_replicas(trace, config, times, replicas=replicas, leap=leap).run() for leap in (True, False)
    )
    assert_frame_equal(leapt.requests, stepped.requests, check_exact=True)
    assert single_steps(leapt.steps) == single_steps(stepped.steps)
    for column in ("start", "end"):
        assert set(leapt.steps[column]) <= set(stepped.steps[column])
    check_that_nothing_is_lost(trace, config, leapt)


@settings(max_examples=40, deadline=None)
@given(
    policy_configs(block_size=4, scheduling_policy="fair_share", token_budget=None, kv_blocks=25),
    tenant_traces(),
    st.booleans(),
)
def test_leap_equals_step_where_tenants_wait_behind_windows(
    config: EngineConfig, trace: pl.DataFrame, lanes: bool
) -> None:
    """Whose turn it is changes as others decode, and with it whether the next of them fits the memory."""
    window = {"policy": "adaptive_window", "minimum": 0.003, "longest": 0.03, "joins": "running", "lanes": lanes}
    config = changed(config, batching=window)
    leapt, stepped = (equal_replicas(trace, config, LinearStepTimes(), leap=leap).run() for leap in (True, False))
    assert_frame_equal(leapt.requests, stepped.requests, check_exact=True)


@settings(max_examples=25, deadline=None)
@given(policy_configs(block_size=4, token_budget=None), tenant_traces(), st.integers(2, 3))
def test_leap_equals_step_in_lock_step(config: EngineConfig, trace: pl.DataFrame, engines: int) -> None:
    config = changed(config, data_parallel=engines)
    leapt, stepped = (equal_replicas(trace, config, GroupStepTimes(), leap=leap).run() for leap in (True, False))
    assert_frame_equal(leapt.requests, stepped.requests, check_exact=True)
    check_that_nothing_is_lost(trace, config, leapt, engines)


@settings(max_examples=40, deadline=None)
@given(
    policy_configs(block_size=4),
    tenant_traces(),
    st.none() | st.integers(1, 2),
    st.lists(st.tuples(st.floats(0.0, 0.5), st.integers(0, 29)), max_size=8),
)
def test_leap_equals_step_where_few_adapters_run_and_clients_go(
    config: EngineConfig, trace: pl.DataFrame, adapters: int | None, aborts: list[tuple[float, int]]
) -> None:
    config = changed(config, max_loras=adapters)
    names = ["request_id", "arrival", "prompt_tokens", "output_tokens", "prefix_ids", "prefix_block_tokens", "priority"]
    adapter = pl.when(pl.col("request_id") % 4 > 0).then(pl.format("{}", pl.col("request_id") % 4))
    rows = trace.select(
        *names,
        session=pl.lit(None, pl.String),
        adapter=adapter,
        tenant="tenant",
        deadline=pl.col("deadline").fill_null(math.inf),
    )
    leapt, stepped = (run_engine(rows, config, LinearStepTimes(), leap=leap, aborts=aborts) for leap in (True, False))
    assert leapt.times == stepped.times
    assert leapt.finished == stepped.finished
    assert single_steps(leapt.steps) == single_steps(stepped.steps)
    assert left_behind(leapt.engine) == 0
    assert leapt.engine.scheduler._batch.blocks_to_come == 0
    service = leapt.engine.scheduler._service
    assert service is None or not (service._waiting or service._chosen)
