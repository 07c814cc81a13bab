"""How prompts and decodes share a step: which steps mix them, who stands still, and what that does to latencies."""

import re
from pathlib import Path

import polars as pl
import pytest
from constant_steps import CONSTANT, PLAIN, STEP
from engine_workloads import BURST, LinearStepTimes, computed_together
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal
from policy_workloads import changed, drive, policy_configs, tenant_traces
from short_traces import trace_of
from step_sums import single_steps

from ground.errors import UserError
from sim.engine.config import EngineConfig
from sim.engine.plan import Plan
from sim.engine.request import Request
from sim.engine.scheduler import Scheduler
from sim.fleet.equal_replicas import equal_replicas
from sim.study.scenario import make_scenario
from sim.study.simulate import simulate


@settings(max_examples=40, deadline=None)
@given(policy_configs(block_size=4, prefill_policy="prefill_first"), tenant_traces())
def test_prefill_first_never_mixes_and_who_stands_still_computes_nothing(
    config: EngineConfig, trace: pl.DataFrame
) -> None:
    stood: dict[Request, int] = {}

    def look(scheduler: Scheduler, plan: Plan, now: float) -> None:
        for request, context in stood.items():
            assert not scheduler.has(request) or scheduler.context(request) == context
        assert not (plan.chunks and plan.decodes)
        assert plan.decodes == len(scheduler.decoding(plan))
        stood.clear()
        lacking = scheduler._prefilling.keys() - {chunk.request for chunk in plan.chunks}
        if plan.chunks and lacking:
            assert all(one.first_scheduled != now and one not in plan.resumed for one in scheduler._prefilling)
        if plan.chunks:
            assert not plan.kv_tokens and not plan.starved
            idle = {*scheduler._prefilling, *scheduler._ended}
            stood.update({one: scheduler.context(one) for one in scheduler._running if one not in idle})

    drive(config, trace, look)


@settings(max_examples=40, deadline=None)
@given(policy_configs(block_size=4, prefill_policy="decode_first"), tenant_traces())
def test_decode_first_computes_no_prompt_while_more_decode(config: EngineConfig, trace: pl.DataFrame) -> None:
    assert config.resume_below is not None
    most = config.resume_below

    def look(scheduler: Scheduler, plan: Plan, now: float) -> None:
        # Who was preempted in this step decoded before it.
        if scheduler.decoding_count + plan.preempted > most:
            assert not plan.chunks or plan.preempted

    drive(config, trace, look)


@settings(max_examples=40, deadline=None)
@given(computed_together(), st.sampled_from(["prefill_first", "decode_first"]), st.integers(0, 2))
def test_leap_equals_step_where_a_blocked_head_loses_what_was_cached(
    case: tuple[EngineConfig, pl.DataFrame], policy: str, resume_below: int
) -> None:
    config = changed(case[0], prefill_policy=policy, resume_below=resume_below if policy == "decode_first" else None)
    leapt, stepped = (equal_replicas(case[1], config, LinearStepTimes(), leap=leap).run() for leap in (True, False))
    assert_frame_equal(leapt.requests, stepped.requests, check_exact=True)
    assert single_steps(leapt.steps) == single_steps(stepped.steps)


def test_who_runs_and_lacks_blocks_takes_those_of_who_ends_in_the_step_under_way() -> None:
    """With asynchronous scheduling a step of those who decode is scheduled while others end, of whose blocks the prompt
    that stands still goes on at the step after it."""
    trace = trace_of((0.0, 1, 1), (0.003, 49, 1), (0.003, 1, 1), (0.003, 9, 3), (0.003, 29, 1))
    config = changed(
        PLAIN,
        kv_blocks=24,
        block_size=4,
        max_num_batched_tokens=30,
        max_num_seqs=4,
        prefill_policy="prefill_first",
        async_scheduling=True,
    )
    leapt, stepped = (equal_replicas(trace, config, LinearStepTimes(), leap=leap).run() for leap in (True, False))
    assert_frame_equal(leapt.requests, stepped.requests, check_exact=True)
    decodes = stepped.steps.filter((pl.col("decode_seqs") > 0) & (pl.col("running") > pl.col("decode_seqs")))
    assert len(decodes) > 0, "a prompt stands still beside them"


# What it does to latencies. Every step takes as long.


def times(trace: pl.DataFrame, **limits: object) -> pl.DataFrame:
    return equal_replicas(trace, changed(PLAIN, **limits), CONSTANT).run().requests


def test_a_prompt_delays_those_who_decode_by_its_steps_and_no_more() -> None:
    """A prompt of three chunks comes at the fourth boundary: mixed, the answer of the other goes on meanwhile."""
    trace = trace_of((0.0, 10, 10), (4 * STEP, 30, 1))
    limits = {"max_num_batched_tokens": 10, "max_num_seqs": 4}
    mixed, first = (times(trace, prefill_policy=policy, **limits) for policy in ("mixed", "prefill_first"))
    assert mixed["finish"].to_list() == [10 * STEP, 8 * STEP]  # nine tokens a step beside the one that decodes
    assert first["finish"].to_list() == [13 * STEP, 7 * STEP]


def test_prompts_wait_until_few_enough_decode() -> None:
    trace = trace_of((0.0, 10, 10), (0.0, 10, 5), (STEP, 10, 3), (2 * STEP, 10, 3))
    requests = times(trace, prefill_policy="decode_first")
    assert requests["finish"].to_list() == [10 * STEP, 5 * STEP, 13 * STEP, 13 * STEP]
    requests = times(trace, prefill_policy="decode_first", resume_below=1)
    assert requests["finish"].to_list() == [10 * STEP, 5 * STEP, 8 * STEP, 8 * STEP]


def test_prompts_that_hold_the_blocks_they_lack_do_not_live_in_lock() -> None:
    """Two prompts are computed in chunks, none of them can end beside the other, and nobody decodes."""
    trace = trace_of((0.0, 60, 2), (0.0, 60, 2))
    limits = {"kv_blocks": 20, "block_size": 4, "max_num_batched_tokens": 32, "long_prefill_token_threshold": 16}
    requests = times(trace, prefill_policy="prefill_first", max_num_seqs=4, **limits)
    assert requests["preemptions"].sum() > 0
    assert requests["finish"].is_not_null().all()


def test_without_chunks_whole_prompts_go_beside_those_who_decode() -> None:
    """Orca's iteration-level scheduling: a prompt waits until the budget has room for all of it."""
    limits = {"max_num_batched_tokens": 100, "max_num_seqs": 4, "enable_chunked_prefill": False}
    for prompt, first_token in ((98, 2 * STEP), (99, 11 * STEP)):
        requests = times(trace_of((0.0, 10, 10), (0.0, 80, 10), (STEP, prompt, 2)), **limits)
        assert requests["first_token"].to_list() == [STEP, STEP, first_token]


# From a scenario.


def scenario(**engine: object):
    data = BURST | {"engine": {"kv_blocks": 4000, **engine}}
    return make_scenario(data, {}, Path(), "test")


def test_prompts_first_answers_sooner_and_stalls_who_decodes() -> None:
    mixed, first = (simulate(scenario(prefill_policy=policy)).requests for policy in ("mixed", "prefill_first"))
    assert first["ttft"].mean() < mixed["ttft"].mean()
    assert first["tpot"].mean() > mixed["tpot"].mean()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"resume_below": 4}, "engine: resume_below is given and prefill_policy is mixed; expected decode_first"),
        (
            {"prefill_policy": "prefill_first", "pipeline_parallel": 2},
            "engine: pipeline_parallel is 2 and prefill_policy prefill_first is given; expected 1",
        ),
        (
            {"prefill_policy": "prefill_first", "preset": "vllm-0.11", "speculative": {"method": "ngram", "tokens": 2}},
            "speculative is given and so is prefill_policy prefill_first; expected one of them",
        ),
        ({"prefill_policy": "first"}, "engine.prefill_policy: Input should be 'mixed', 'prefill_first' or"),
    ],
)
def test_what_does_not_go_together_is_refused(settings: dict, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        scenario(**settings)
