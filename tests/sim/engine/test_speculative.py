"""Speculative decoding loses and invents no token, keeps to budget and blocks, and has the same luck in any batch."""

from itertools import pairwise

import numpy as np
import polars as pl
import pytest
from engine_workloads import LinearStepTimes, configs, traces
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal
from speculative_runs import run, speculating, total
from step_sums import single_steps

from ground.errors import UserError
from sim.engine.config import EngineConfig
from sim.engine.request import Request
from sim.engine.scheduler import Scheduler
from sim.engine.speculative.drafter import DrawnDrafter
from sim.engine.speculative.draws import Draws
from sim.engine.speculative.settings import SpeculativeSettings
from sim.fleet.equal_replicas import equal_replicas

ALPHA = st.sampled_from([0.0, 0.3, 0.8, 1.0])


@st.composite
def speculations(draw: st.DrawFn) -> dict[str, object]:
    if draw(st.booleans()):
        return {"method": "draft", "draft_model": "any", "tokens": draw(st.integers(1, 6)), "acceptance": draw(ALPHA)}
    rates = sorted(draw(st.lists(st.floats(0, 1), min_size=1, max_size=6)), reverse=True)
    return {"tokens": len(rates), "acceptance": rates, "proposals": draw(st.sampled_from([0.2, 1.0]))}


@settings(max_examples=40)
@given(configs(), traces(id_tokens=16), speculations(), st.sampled_from(["continuous", "static"]))
def test_no_token_is_lost_or_invented(
    config: EngineConfig, trace: pl.DataFrame, speculation: dict[str, object], joining: str
) -> None:
    config = speculating(config, joining=joining, **speculation)
    result = run(trace, config)
    requests, steps = result.requests, result.steps
    assert requests["status"].to_list() == ["finished"] * len(trace)
    for earlier, later in pairwise(("arrival", "first_scheduled", "first_token", "finish")):
        assert (requests[earlier] <= requests[later]).all()
    assert (steps["running"] <= config.max_num_seqs).all()
    assert (steps["kv_blocks"] <= config.kv_blocks).all()
    assert steps["kv_blocks"][-1] == 0
    drafted = result.events.filter(pl.col("kind") == "drafted").select(start="time", drafts="amount")
    tokens = steps.join(drafted, on="start", how="left").select(
        pl.col("prefill_tokens") + pl.col("decode_seqs") + pl.col("drafts").fill_null(0)
    )
    assert (tokens.to_series() <= config.max_num_batched_tokens).all()
    later = int(trace["output_tokens"].sum()) - len(trace)
    gained = single_steps(steps)["decoded"] + total(result, "accepted")
    # Who was preempted gains a token where his prompt is computed again.
    assert gained <= later if requests["preemptions"].sum() else gained == later
    assert total(result, "accepted") <= total(result, "drafted")


@settings(max_examples=40)
@given(configs(), traces(id_tokens=16))
def test_without_drafts_it_is_plain_decoding(config: EngineConfig, trace: pl.DataFrame) -> None:
    plain = config.model_copy(update={"async_scheduling": False})
    expected = equal_replicas(trace, plain, LinearStepTimes(), leap=False).run()
    found = run(trace, speculating(config, tokens=3, acceptance=0.9, proposals=0.0))
    assert_frame_equal(found.requests, expected.requests, abs_tol=1e-9, rel_tol=0)
    assert_frame_equal(found.steps, expected.steps, abs_tol=1e-9, rel_tol=0)
    assert_frame_equal(found.events, expected.events, abs_tol=1e-9, rel_tol=0)


@settings(max_examples=30)
@given(configs(block_size=4), traces(), speculations())
def test_leap_equals_step(config: EngineConfig, trace: pl.DataFrame, speculation: dict[str, object]) -> None:
    config = speculating(config, **speculation)
    leapt, stepped = (run(trace, config, leap=leap, lookup=1e-4) for leap in (True, False))
    for name in ("requests", "steps", "events"):
        assert_frame_equal(getattr(leapt, name), getattr(stepped, name), check_exact=True)


@settings(max_examples=30)
@given(traces(), speculations(), st.integers(1, 8), st.integers(0, 3))
def test_luck_does_not_depend_on_who_runs_beside(
    trace: pl.DataFrame, speculation: dict[str, object], seqs: int, seed: int
) -> None:
    """With budget and blocks for all, a request's steps and drafts follow from its number alone."""
    room = EngineConfig(kv_blocks=5000, block_size=4, max_num_seqs=seqs, max_num_batched_tokens=4096)
    config = speculating(room, **speculation, seed=seed)
    together = run(trace, config)
    drafter = DrawnDrafter(config.speculative)
    expected = accepted = 0
    for row in trace.iter_rows(named=True):
        request = Request(row["request_id"], 0.0, row["prompt_tokens"], row["output_tokens"])
        request.generated = 1
        while request.generated < request.output_tokens:
            drafts = 0
            if left := request.output_tokens - request.generated - 1:
                drafts = drafter.drafts(request, min(config.speculative.tokens, left))
            kept = drafter.accepted(request, drafts)
            request.generated += 1 + kept
            expected, accepted = expected + 1, accepted + kept
    assert single_steps(together.steps)["decoded"] == expected
    assert total(together, "accepted") == accepted


@pytest.mark.parametrize("tokens", [1, 2, 5])
@pytest.mark.parametrize("output", [1, 2, 7, 24])
def test_drafts_that_are_all_accepted(tokens: int, output: int) -> None:
    """Every step gives one more than is drafted, and the last one no more than is left."""
    trace = pl.DataFrame({"request_id": [0], "arrival": [0.0], "prompt_tokens": [9], "output_tokens": [output]})
    config = EngineConfig(kv_blocks=10, speculative={"tokens": tokens, "acceptance": 1.0})
    result = run(trace, config, base=1.0, per_token=0.25, per_kv=0.0)
    assert single_steps(result.steps)["decoded"] == -(-(output - 1) // (tokens + 1))
    seconds, left = 1.0 + 9 * 0.25, output - 1
    while left:
        gained = min(tokens + 1, left)
        seconds, left = seconds + 1.0 + gained * 0.25, left - gained
    assert result.requests["finish"][0] == pytest.approx(seconds)


def test_blocks_of_the_lookahead_are_held_and_end_with_the_request() -> None:
    def held(**speculative: object) -> list[int]:
        trace = pl.DataFrame({"request_id": [0], "arrival": [0.0], "prompt_tokens": [4], "output_tokens": [13]})
        config = EngineConfig(kv_blocks=16, block_size=1, speculative={"tokens": 3, "acceptance": 0.0, **speculative})
        return run(trace, config).steps["kv_blocks"].to_list()

    # Prompt, then a token and three drafts a step, of which none is accepted; nothing beyond token 16.
    assert held() == [4, *(min(4 + step + 4, 16) for step in range(11)), 0]
    # A draft model writes three more.
    assert held(method="draft", draft_model="any") == [4, *(min(4 + step + 7, 16) for step in range(11)), 0]


class RandomDrafter:
    """Drafts and accepts as hypothesis says."""

    def __init__(self, numbers: list[int]) -> None:
        self._numbers = numbers
        self._next = 0

    def _draw(self, most: int) -> int:
        self._next += 1
        return self._numbers[self._next % len(self._numbers)] % (most + 1)

    def drafts(self, request: Request, most: int) -> int:
        assert 1 <= most < request.output_tokens - request.generated
        return self._draw(most)

    def accepted(self, request: Request, drafts: int) -> int:
        return self._draw(drafts)


@settings(max_examples=50)
@given(
    configs(block_size=4),
    traces(),
    st.lists(st.integers(0, 30), min_size=1, max_size=40),
    st.sampled_from(["ngram", "draft"]),
)
def test_every_step_has_blocks_for_what_it_verifies(
    config: EngineConfig, trace: pl.DataFrame, numbers: list[int], method: str
) -> None:
    own = {"draft_model": "any"} if method == "draft" else {}
    config = speculating(config, method=method, tokens=4, acceptance=0.5, **own)
    scheduler = Scheduler(config)
    batch = scheduler.speculation
    assert batch is not None
    batch.drafter = RandomDrafter(numbers)
    generated = {}
    for row in trace.iter_rows(named=True):
        scheduler.add(
            Request(
                row["request_id"],
                row["arrival"],
                row["prompt_tokens"],
                row["output_tokens"],
                row["prefix_ids"],
                row["prefix_block_tokens"],
                row["priority"],
            )
        )
    now, finished = 1e3, []
    while (plan := scheduler.schedule(now)) is not None:
        budget = config.max_num_batched_tokens - sum(chunk.tokens for chunk in plan.chunks)
        assert sum(new for new, _ in batch.verified) <= budget
        assert set(batch.granted) == set(scheduler.decoding(plan))
        assert plan.kv_tokens == sum(cached for _, cached in batch.verified)
        written: set[tuple[int, int]] = set()
        for request, drafts in batch.granted.items():
            context = scheduler.context(request)
            assert context == request.prompt_tokens + request.generated - 1
            generated[request] = request.generated
            table = scheduler.block_table(request)
            last = request.prompt_tokens + request.output_tokens - 1
            behind = config.speculative.lookahead
            assert context + 1 + drafts <= last
            assert len(table) * 4 >= min(context + 1 + drafts + behind, last)
            places = {(table[at // 4], at % 4) for at in range(context, context + 1 + drafts)}
            assert not places & written, "two sequences write to one place"
            written |= places
        done = scheduler.finish(plan, now)
        for request, kept in batch.accepted.items():
            assert 0 <= kept <= 4
            if request not in done:
                assert request.generated == generated[request] + 1 + kept
        finished += done
        now += 1.0
    assert sorted(request.request_id for request in finished) == trace["request_id"].to_list()
    assert all(request.generated == request.output_tokens for request in finished)
    assert scheduler.pool.held == 0


@settings(max_examples=20)
@given(st.integers(1, 8), st.sampled_from([0.0, 0.35, 0.9]), st.integers(0, 2**31))
def test_accepted_drafts_are_a_capped_geometric_variable(tokens: int, alpha: float, seed: int) -> None:
    """Equation 1 of Leviathan et al. 2023: (1 - α^(k + 1)) / (1 - α) tokens a step."""
    drafter = DrawnDrafter(SpeculativeSettings(tokens=tokens, acceptance=alpha, seed=seed))
    gained = []
    for number in range(60):
        request = Request(number, 0.0, 1, 1000)
        for request.generated in range(1, 51):
            gained.append(1 + drafter.accepted(request, tokens))
    expected = (1 - alpha ** (tokens + 1)) / (1 - alpha)
    assert np.mean(gained) == pytest.approx(expected, abs=5 * np.std(gained) / np.sqrt(len(gained)) + 1e-12)


def test_rates_by_position_are_met() -> None:
    rates = (0.8, 0.5, 0.45)
    drafter = DrawnDrafter(SpeculativeSettings(tokens=3, acceptance=rates, proposals=0.6))
    requests = [Request(number, 0.0, 1, 1000) for number in range(20_000)]
    kept = np.array([drafter.accepted(request, 3) for request in requests])
    assert [float((kept > position).mean()) for position in range(3)] == pytest.approx(rates, abs=0.015)
    assert np.mean([drafter.drafts(request, 3) for request in requests]) == pytest.approx(3 * 0.6, abs=0.05)
    assert max(drafter.accepted(request, 1) for request in requests) == 1  # no more than were verified


def test_draws_are_uniform_and_do_not_follow_each_other() -> None:
    draws = Draws(0, "test")
    drawn = np.array([[draws.at(request, place) for place in range(100)] for request in range(100)])
    assert ((drawn >= 0.0) & (drawn < 1.0)).all()
    counts = np.histogram(drawn, bins=20, range=(0, 1))[0]
    assert (abs(counts - 500) < 5 * np.sqrt(500)).all()
    for one, other in ((drawn[:-1], drawn[1:]), (drawn[:, :-1], drawn[:, 1:])):
        assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 0.05
    assert draws.at(3, 5) == Draws(0, "test").at(3, 5) != Draws(1, "test").at(3, 5)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tokens": 3, "acceptance": [0.5, 0.4]}, "acceptance has 2 rates and tokens is 3"),
        ({"tokens": 2, "acceptance": [0.4, 0.5]}, "expected rates that do not rise"),
        ({"tokens": 2, "prompt_lookup_min": 6}, "prompt_lookup_min is 6 and prompt_lookup_max 5"),
        ({"tokens": 2, "method": "draft"}, "method is draft and draft_model is not given"),
        ({"tokens": 2, "method": "draft", "draft_model": "a", "proposals": 0.5}, "draft and proposals is given"),
        ({"tokens": 2, "draft_profile": "a"}, "method is ngram and draft_profile is given"),
    ],
)
def test_settings_that_contradict_each_other(given: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SpeculativeSettings(**given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"async_scheduling": True}, "async_scheduling true"),
        ({"pipeline_parallel": 2}, "pipeline_parallel 2"),
        ({"data_parallel": 2}, "data_parallel 2"),
        ({"kv_cache": False}, "kv_cache false"),
        ({"kv_reservation": "oracle"}, "kv_reservation oracle"),
        ({"preemption": "auto", "swap_blocks": 4}, "preemption auto"),
    ],
)
def test_what_speculation_does_not_combine_with(given: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=f"speculative is given, and so is {message}; expected one of them"):
        EngineConfig(kv_blocks=8, speculative={"tokens": 2}, **given)


def test_a_simulation_must_be_told_how_often_drafts_are_accepted() -> None:
    trace = pl.DataFrame({"request_id": [0], "arrival": [0.0], "prompt_tokens": [4], "output_tokens": [3]})
    with pytest.raises(UserError, match=r"engine\.speculative\.acceptance is not given; expected"):
        run(trace, EngineConfig(kv_blocks=8, speculative={"tokens": 2}))


@pytest.mark.parametrize("acceptance", [0.0, 0.6, 1.0])
def test_a_draft_is_not_cached_before_it_is_accepted(acceptance: float) -> None:
    """Of 11 computed tokens two blocks of four are full, though drafts had slots in the third."""
    trace = pl.DataFrame(
        {
            "request_id": [0, 1],
            "arrival": [0.0, 100.0],
            "prompt_tokens": [4, 16],
            "output_tokens": [8, 1],
            "prefix_ids": [[1, 2, 3], [1, 2, 3, 4]],
            "prefix_block_tokens": [4, 4],
        }
    )
    own = {"method": "draft", "draft_model": "any", "tokens": 6, "acceptance": acceptance}
    result = run(trace, EngineConfig(kv_blocks=16, block_size=4, speculative=own))
    assert result.requests["cached_tokens"].to_list() == [0, 8]
