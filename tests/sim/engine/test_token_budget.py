"""A token budget that follows the time of steps with prompts: its bounds, its aim, and that decodes leave it alone."""

import re
from pathlib import Path

import polars as pl
import pytest
from engine_workloads import BURST, LinearStepTimes, computed_together
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal
from policy_workloads import changed
from short_traces import trace_of
from step_sums import single_steps

from ground.errors import UserError
from sim.engine.config import EngineConfig
from sim.engine.plan import Chunk, Plan
from sim.engine.request import Request
from sim.engine.token_budget import TokenBudget, TokenBudgetSettings
from sim.fleet.equal_replicas import equal_replicas
from sim.study.scenario import make_scenario
from sim.study.simulate import simulate

REQUEST = Request(0, 0.0, 1000, 1)


def plan_of(prompt: int, decodes: int, unused: int, scheduled: float) -> Plan:
    plan = Plan(unused)
    plan.decodes, plan.scheduled = decodes, scheduled
    if prompt:
        plan.chunks.append(Chunk(REQUEST, 0, prompt))
    return plan


steps = st.tuples(st.integers(0, 100), st.integers(0, 100), st.integers(0, 50), st.floats(0.0, 1.0))


@given(st.lists(steps, max_size=40), st.integers(1, 50), st.integers(50, 200), st.floats(0.001, 1.0))
def test_it_stays_in_its_bounds_and_decodes_leave_it_alone(
    rows: list[tuple[int, int, int, float]], minimum: int, maximum: int, target: float
) -> None:
    budget = TokenBudget(TokenBudgetSettings(tpot_target=target, minimum=minimum), maximum)
    now = 0.0
    for prompt, decodes, unused, seconds in rows:
        before, start, now = budget.tokens, now, now + seconds
        budget.ended(plan_of(prompt, decodes, unused, start), now)
        assert minimum <= budget.tokens <= maximum
        if not prompt or (unused and seconds < target * (1 - 1e-9)):
            assert budget.tokens == before


@given(st.floats(0.0, 0.018), st.floats(1e-5, 1e-3), st.floats(0.02, 0.1), st.integers(1, 2000))
def test_where_time_is_linear_in_tokens_it_comes_to_the_target_and_stays(
    fixed: float, a_token: float, target: float, at_first: int
) -> None:
    budget = TokenBudget(TokenBudgetSettings(tpot_target=target, minimum=1), 2000)
    budget.tokens = at_first
    now = 0.0
    for _ in range(150):
        seconds = fixed + a_token * budget.tokens
        budget.ended(plan_of(budget.tokens, 0, 0, now), now + seconds)
        now += seconds
    wanted = min(max(1.0, (target - fixed) / a_token), 2000.0)
    # What is left of the way after so many steps, and what rounding is good for.
    assert abs(budget.tokens - wanted) <= 1.0 + 2000 * (fixed / target) ** 140


def test_a_step_that_was_scheduled_ahead_began_when_the_one_before_it_ended() -> None:
    budget = TokenBudget(TokenBudgetSettings(tpot_target=0.1, minimum=1), 1000)
    budget.ended(plan_of(0, 5, 0, scheduled=0.0), 0.9)
    budget.ended(plan_of(400, 0, 0, scheduled=0.0), 1.0)
    assert budget.tokens == 400


def test_in_a_long_run_the_median_of_steps_with_prompts_is_the_target() -> None:
    trace = trace_of(*((0.02 * number, 300, 40) for number in range(300)))
    times = LinearStepTimes(base=0.004, per_token=0.000_1, per_kv=0.0)
    config = EngineConfig(kv_blocks=10_000, max_num_seqs=64, max_num_batched_tokens=2048, enable_prefix_caching=False)
    for target in (0.02, 0.05):
        following = changed(config, token_budget={"tpot_target": target, "minimum": 64})
        rows = equal_replicas(trace, following, times).run().steps.filter(pl.col("prefill_tokens") > 0)
        # Where every waiting prompt fits, steps are shorter; the load here leaves none of them short for long.
        full = rows.filter(pl.col("waiting") > 0)
        assert len(full) > 100
        assert (full["end"] - full["start"]).median() == pytest.approx(target, rel=0.02)


@settings(max_examples=40, deadline=None)
@given(computed_together(), st.sampled_from([0.0102, 0.011, 0.0115]), st.sampled_from(["mixed", "prefill_first"]))
def test_leap_equals_step_where_a_head_is_blocked(
    case: tuple[EngineConfig, pl.DataFrame], target: float, prefill_policy: str
) -> None:
    config = changed(
        case[0], token_budget={"tpot_target": target, "minimum": case[0].max_num_seqs}, prefill_policy=prefill_policy
    )
    leapt, stepped = (equal_replicas(case[1], config, LinearStepTimes(), leap=leap).run() for leap in (True, False))
    assert_frame_equal(leapt.requests, stepped.requests, check_exact=True)
    assert single_steps(leapt.steps) == single_steps(stepped.steps)


@pytest.mark.parametrize("leap", [True, False])
def test_a_head_that_a_smaller_budget_lets_in_is_admitted_at_the_next_step(leap: bool) -> None:
    """The first step takes too long, while the second is scheduled already, and refused a chunk of ten blocks. The
    third has half the budget: a chunk of five blocks, for which six are free."""
    trace = trace_of((0.0, 4, 30), (0.0, 36, 30), (0.0, 40, 2))
    config = EngineConfig(
        kv_blocks=17,
        block_size=4,
        max_num_seqs=4,
        max_num_batched_tokens=40,
        enable_prefix_caching=False,
        async_scheduling=True,
        token_budget=TokenBudgetSettings(tpot_target=0.001, minimum=20),
    )
    requests = equal_replicas(trace, config, LinearStepTimes(), leap=leap).run().requests
    first_step = LinearStepTimes().step([(4, 0), (36, 0)], 0, 0)
    assert requests["first_scheduled"][2] == pytest.approx(first_step)


def scenario(**engine: object):
    return make_scenario(BURST | {"engine": {"kv_blocks": 4000, **engine}}, {}, Path(), "test")


def test_of_a_scenario_it_shortens_the_steps_that_compute_prompts() -> None:
    target = 0.008
    usual = simulate(scenario(max_num_seqs=64)).steps
    following = simulate(scenario(max_num_seqs=64, token_budget={"tpot_target": target, "minimum": 64})).steps
    longest = [
        (rows["end"] - rows["start"]).quantile(0.9)
        for rows in (table.filter(pl.col("prefill_tokens") > 0) for table in (usual, following))
    ]
    assert longest[1] < longest[0]
    assert longest[1] == pytest.approx(target, rel=0.1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "token_budget.minimum is 64; expected max_num_seqs (256) to max_num_batched_tokens (2048)"),
        ({"max_num_seqs": 32, "enable_chunked_prefill": False}, "enable_chunked_prefill is false; expected true"),
        ({"max_num_seqs": 32, "data_parallel": 2}, "token_budget is given and data_parallel is 2; expected 1"),
        ({"max_num_seqs": 32, "pipeline_parallel": 2}, "pipeline_parallel is 2 and token_budget is given; expected 1"),
    ],
)
def test_what_does_not_go_together_is_refused(settings: dict, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        scenario(token_budget={"tpot_target": 0.02, "minimum": 64}, **settings)
