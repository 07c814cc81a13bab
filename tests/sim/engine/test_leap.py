"""A leap is exact: request by request and step by step the same as one step at a time."""

import numpy as np
import polars as pl
import pytest
from engine_workloads import LinearStepTimes, computed_together, configs, traces
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal
from step_sums import check_that_nothing_is_lost, single_steps

from calibrate.datasheet import datasheet_profile
from calibrate.latency import StepLatency
from calibrate.model import load_model
from sim.engine.config import EngineConfig
from sim.fleet.equal_replicas import equal_replicas
from sim.fleet.fleet import FleetRun
from sim.fleet.routers import ROUTERS
from sim.results.tables import REQUESTS


def run(
    trace: pl.DataFrame,
    config: EngineConfig,
    *,
    leap: bool,
    replicas: int = 1,
    router: str = "round_robin",
    has_law: bool = True,
) -> FleetRun:
    times = LinearStepTimes(has_law=has_law)
    return equal_replicas(trace, config, times, replicas=replicas, router=router, seed=3, leap=leap).run()


@settings(max_examples=150, deadline=None)
@given(configs(block_size=4), traces(), st.integers(1, 3), st.sampled_from(sorted(ROUTERS)), st.booleans())
def test_leap_equals_step(config: EngineConfig, trace: pl.DataFrame, replicas: int, router: str, law: bool) -> None:
    leapt = run(trace, config, leap=True, replicas=replicas, router=router, has_law=law)
    stepped = run(trace, config, leap=False, replicas=replicas, router=router, has_law=law)
    # Stronger than the 1e-9 s that we promise: an instant is the same expression either way, so the bits are the same.
    assert_frame_equal(leapt.requests, stepped.requests, check_exact=True)
    assert single_steps(leapt.steps) == single_steps(stepped.steps)
    for column in ("start", "end"):
        assert set(leapt.steps[column]) <= set(stepped.steps[column])


@settings(max_examples=100, deadline=None)
@given(configs(), traces(id_tokens=16), st.integers(1, 3))
def test_nothing_is_lost_and_no_clock_runs_back(config: EngineConfig, trace: pl.DataFrame, replicas: int) -> None:
    result = run(trace, config, leap=True, replicas=replicas)
    requests, steps = result.requests, result.steps
    assert list(requests.columns) == list(REQUESTS)
    check_that_nothing_is_lost(trace, config, result)
    for _, of_replica in steps.group_by("replica"):
        assert (of_replica["start"].to_numpy()[1:] >= of_replica["end"].to_numpy()[:-1]).all()
    if requests["preemptions"].sum():
        generated, done = int(trace["output_tokens"].sum()), single_steps(steps)
        assert done["decoded"] <= generated - len(trace)
        if not config.enable_prefix_caching:
            computed_once = int(trace["prompt_tokens"].sum()) + generated - len(trace)
            assert done["decoded"] + done["prefilled"] >= computed_once


@pytest.mark.parametrize("leap", [True, False])
def test_an_arrival_inside_a_leap_is_seen_at_the_next_boundary(leap: bool) -> None:
    trace = pl.DataFrame(
        {"request_id": [0, 1], "arrival": [0.0, 0.25], "prompt_tokens": [10, 10], "output_tokens": [100, 2]}
    )
    times = LinearStepTimes(base=0.1, per_token=0.0, per_kv=0.0)
    result = equal_replicas(trace, EngineConfig(kv_blocks=100), times, leap=leap).run()
    assert result.requests["first_scheduled"].to_list() == pytest.approx([0.0, 0.3])
    assert result.requests["finish"].to_list() == pytest.approx([10.0, 0.5])


def test_a_step_that_only_preempts_computes_nothing() -> None:
    """The less urgent request runs first, finds no block and gives up its own: nobody is served in that step."""
    trace = pl.DataFrame(
        {
            "request_id": [0, 1],
            "arrival": [0.0, 0.000_001],
            "prompt_tokens": [30, 20],
            "output_tokens": [30, 30],
            "priority": [0, 1],
        }
    )
    config = EngineConfig(kv_blocks=18, block_size=4, scheduling_policy="priority", enable_prefix_caching=False)
    model = load_model("tiny-llama")
    result = equal_replicas(trace, config, StepLatency(datasheet_profile("h100-sxm-80gb", model, 1), model)).run()
    idle = result.steps.filter((pl.col("prefill_tokens") == 0) & (pl.col("decode_seqs") == 0))
    assert len(idle) > 0
    assert (idle["preempted"] > 0).all()
    assert (idle["start"] == idle["end"]).all()
    assert result.requests["status"].to_list() == ["finished", "finished"]


def test_a_long_decode_is_one_event() -> None:
    trace = pl.DataFrame({"request_id": [0], "arrival": [0.0], "prompt_tokens": [8], "output_tokens": [5000]})
    result = run(trace, EngineConfig(kv_blocks=1000), leap=True)
    assert result.steps["steps"].to_list() == [1, 4999]
    times = LinearStepTimes()
    expected = times.step([(8, 0)], 0, 0) + np.sum(times.decode_run(1, 8, 4999))
    assert result.requests["finish"][0] == pytest.approx(expected, abs=1e-9)


@settings(max_examples=100, deadline=None)
@given(computed_together())
def test_leap_equals_step_where_a_blocked_head_loses_what_was_cached(case: tuple[EngineConfig, pl.DataFrame]) -> None:
    config, trace = case
    leapt, stepped = (run(trace, config, leap=leap) for leap in (True, False))
    assert_frame_equal(leapt.requests, stepped.requests, check_exact=True)
    assert single_steps(leapt.steps) == single_steps(stepped.steps)


TENTHS = LinearStepTimes(base=0.1, per_token=0.0, per_kv=0.0)
IN_CHUNKS = EngineConfig(
    kv_blocks=24, block_size=4, max_num_seqs=4, max_num_batched_tokens=25, long_prefill_token_threshold=16
)


def behind_a_long_answer(*before: tuple[int, int]) -> pl.DataFrame:
    """Request 0 decodes 90 tokens; those `before` (prompt tokens, output tokens) come with it, have the same 32 tokens
    to start with, and end soon; the last comes with them when fewer than the 12 blocks of its first chunk are free.
    """
    start = list(range(8))
    count = len(before) + 2
    return pl.DataFrame(
        {
            "request_id": range(count),
            "arrival": [*([0.0] * (count - 1)), 4.65],
            "prompt_tokens": [4, *(prompt for prompt, _ in before), 48],
            "output_tokens": [90, *(output for _, output in before), 3],
            "prefix_ids": [[100], *([start] * len(before)), [*start, 300, 301, 302, 303]],
            "prefix_block_tokens": [4] * count,
        },
        schema_overrides={"prefix_ids": pl.List(pl.Int64)},
    )


@pytest.mark.parametrize("leap", [True, False])
def test_a_head_that_needs_less_since_the_middle_of_its_prefix_went_is_admitted_at_once(leap: bool) -> None:
    # Of the two the one that ends first has the fifth block of the start in the cache, the other those after it. With
    # the fifth evicted the chunk of 16 tokens begins behind the fourth: eight blocks in all, and nine are free.
    requests = equal_replicas(behind_a_long_answer((34, 3), (34, 2)), IN_CHUNKS, TENTHS, leap=leap).run().requests
    assert requests["first_scheduled"][3] == pytest.approx(5.3)
    assert requests["cached_tokens"][3] == 16


def test_a_prefix_that_is_evicted_from_its_end_cuts_no_leap() -> None:
    result = equal_replicas(behind_a_long_answer((34, 3)), IN_CHUNKS, TENTHS).run()
    assert result.requests["cached_tokens"][2] == 0, "all of it was evicted while the request waited"
    waited = result.steps.filter(pl.col("waiting") > 0)
    assert waited["end"].to_list() == pytest.approx([4.7, 9.0]), "one leap until it came, and one until room was made"
