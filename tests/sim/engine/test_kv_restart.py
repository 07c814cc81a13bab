"""An engine that is started anew has lost its KV cache: everybody computes everything again."""

from dataclasses import dataclass, field

import polars as pl
import pytest
from engine_workloads import LinearStepTimes, configs, traces
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal
from session_workloads import BLOCK, conversations, retaining

from sim.engine.config import EngineConfig
from sim.engine.plan import Plan
from sim.engine.request import Request
from sim.engine.session_retention import SessionRetentionSettings
from sim.engine.step_costs import StepCost, StepCosts
from sim.fleet.equal_replicas import equal_replicas
from sim.fleet.fleet import Fleet, FleetRun

SECONDS = 0.7


@dataclass
class FailsOnce:
    """The first step of each number of decoding sequences in `decodes` fails, and each `prefills`-th step with a
    prefill does, of the first 60: an engine that fails for ever never gets through a long prompt."""

    decodes: set[int]
    prefills: int = 0
    seen_prefills: int = 0
    failed: list[float] = field(default_factory=list)
    ended: list[float] = field(default_factory=list)

    def begin(self, plan: Plan, now: float) -> StepCost:
        self.seen_prefills += bool(plan.chunks)
        due = self.prefills and self.seen_prefills <= 60 and self.seen_prefills % self.prefills == 0
        fails = bool(due and plan.chunks)
        if plan.decodes in self.decodes:
            self.decodes = self.decodes - {plan.decodes}
            fails = True
        if fails:
            self.failed.append(now)
            return StepCost(once=SECONDS, restart=True)
        return StepCost()

    def end(self, start: float, steps: int) -> None:
        self.ended.append(start)

    def finished(self, request: Request, now: float) -> None:
        pass


def run(
    trace: pl.DataFrame, config: EngineConfig, source: FailsOnce, *, leap: bool = True, law: bool = True
) -> tuple[FleetRun, Fleet]:
    times = LinearStepTimes(has_law=law)
    fleet = equal_replicas(trace, config, times, costs=lambda replica, events: StepCosts([source]), leap=leap)
    return fleet.run(), fleet


sources = st.builds(FailsOnce, st.sets(st.integers(1, 5)), st.sampled_from([0, 0, 7, 20]))


def copy_of(source: FailsOnce) -> FailsOnce:
    return FailsOnce(source.decodes, source.prefills)


@st.composite
def cases(draw: st.DrawFn) -> tuple[pl.DataFrame, EngineConfig]:
    """With a cache or without, in blocks or in ranges, with copies in host memory or with idle sessions."""
    config = draw(configs(block_size=BLOCK))
    kind = draw(st.sampled_from(["plain", "sessions", "no cache", "ranges"]))
    nothing_shared = {"enable_prefix_caching": False, "swap_blocks": 0}
    if kind == "sessions":
        return draw(conversations()), draw(retaining(config))
    if kind == "no cache":
        config = config.model_copy(update=nothing_shared | {"kv_cache": False})
    if kind == "ranges":
        config = config.model_copy(update=nothing_shared | {"kv_reservation": "pow2", "kv_blocks": 40})
    return draw(traces()), config


@settings(max_examples=100, deadline=None)
@given(cases(), sources, st.booleans())
def test_leap_equals_step(case: tuple[pl.DataFrame, EngineConfig], source: FailsOnce, law: bool) -> None:
    trace, config = case
    (leapt, _), (stepped, _) = (run(trace, config, copy_of(source), leap=leap, law=law) for leap in (True, False))
    assert_frame_equal(leapt.requests, stepped.requests, check_exact=True)
    kinds = pl.col("kind").is_in(["preempted", "resumed", "session_evicted"])
    assert_frame_equal(leapt.events.filter(kinds), stepped.events.filter(kinds), check_exact=True)
    if leapt.sessions is not None and stepped.sessions is not None:
        assert_frame_equal(leapt.sessions, stepped.sessions, check_exact=True)


@settings(max_examples=200, deadline=None)
@given(cases(), sources, st.booleans())
def test_all_are_served_and_nothing_is_leaked(
    case: tuple[pl.DataFrame, EngineConfig], source: FailsOnce, leap: bool
) -> None:
    trace, config = case
    result, fleet = run(trace, config, source, leap=leap)
    requests, steps = result.requests, result.steps
    assert requests["status"].to_list() == ["finished"] * len(trace)
    scheduler = fleet.service.members[0].engine.scheduler
    assert scheduler.pool.held == 0
    assert scheduler.swap.free == config.swap_blocks
    batch = scheduler._batch
    assert not batch._unsettled and not batch.count and not batch.kv_tokens and not any(batch.at_edge)
    # Each failure is a row that takes its time and computes nothing; all that held blocks has lost them.
    assert not set(source.failed) & set(source.ended)
    for start in source.failed:
        rows = steps.filter((pl.col("start") == start) & (pl.col("end") == start + SECONDS))
        assert len(rows) == 1
        row = rows.row(0, named=True)
        assert row["prefill_tokens"] == row["decode_seqs"] == row["kv_tokens"] == row["running"] == 0
        assert row["preempted"] > 0
        assert row["kv_blocks"] == 0
    assert steps["preempted"].sum() == requests["preemptions"].sum()
    if config.kv_cache and not config.enable_prefix_caching and not config.swap_blocks:
        again = result.events.filter(pl.col("kind") == "recomputed")["amount"].sum()
        computed = steps["prefill_tokens"].sum() + (steps["steps"] * steps["decode_seqs"]).sum()
        assert computed == (trace["prompt_tokens"] + trace["output_tokens"] - 1).sum() + again


ONE = pl.DataFrame(
    {
        "request_id": [0, 1],
        "arrival": [0.0, 0.0],
        "prompt_tokens": [30, 20],
        "output_tokens": [20, 1],
        "prefix_ids": [[1, 2, 3, 4, 5, 6, 7], [11, 12, 13, 14, 15]],
        "prefix_block_tokens": [4, 4],
    }
)


@pytest.mark.parametrize("ahead", [False, True])
def test_what_is_lost_is_computed_again_as_prompt(ahead: bool) -> None:
    """The first step that only decodes fails: request 0 has its first token and 30 in the cache, request 1 is done."""
    config = EngineConfig(kv_blocks=100, block_size=4, async_scheduling=ahead)
    result, _ = run(ONE, config, FailsOnce({1}))
    first, failed, again, *_ = result.steps.iter_rows(named=True)
    assert (first["prefill_tokens"], failed["preempted"], again["prefill_tokens"]) == (50, 1, 31)
    assert again["start"] == failed["end"] == failed["start"] + SECONDS
    assert result.requests["first_token"][0] == first["end"], "the user has it already"
    assert result.requests["preemptions"].to_list() == [1, 0]
    events = result.events.filter(pl.col("kind").is_in(["preempted", "resumed", "recomputed"]))
    assert events["kind"].to_list() == ["preempted", "resumed", "recomputed"]
    assert events["amount"].to_list() == [30, 30, 30]


@pytest.mark.parametrize("ahead", [False, True])
def test_who_comes_meanwhile_is_in_the_first_step_after(ahead: bool) -> None:
    late = ONE.with_columns(arrival=pl.Series([0.0, 0.3]))
    result, _ = run(late, EngineConfig(kv_blocks=100, block_size=4, async_scheduling=ahead), FailsOnce({1}))
    assert result.steps["prefill_tokens"].to_list()[:3] == [30, 0, 31 + 20]


def test_the_prefix_cache_is_empty_and_nobody_says_that_it_evicted() -> None:
    trace = pl.concat([ONE, ONE.with_columns(request_id=pl.col("request_id") + 2, arrival=pl.lit(5.0))])
    config = EngineConfig(kv_blocks=100, block_size=4)
    kept, _ = run(trace, config, FailsOnce(set()))
    lost, _ = run(trace, config, FailsOnce({1}))
    assert kept.requests["cached_tokens"].to_list() == [0, 0, 28, 16]
    assert lost.requests["cached_tokens"].to_list() == [0, 0, 28, 0], "request 1 had gone, and was not computed again"
    assert lost.events.filter(pl.col("kind") == "missed").is_empty()


@settings(max_examples=200, deadline=None)
@given(configs(block_size=BLOCK), traces(), sources)
def test_without_eviction_nothing_is_missed(config: EngineConfig, trace: pl.DataFrame, source: FailsOnce) -> None:
    """However often the engine is started anew: every prefix has blocks of its own."""
    total = int((trace["prompt_tokens"] + trace["output_tokens"]).sum())
    update = {"enable_prefix_caching": True, "kv_blocks": 2 * total}
    result, _ = run(trace, config.model_copy(update=update), source)
    assert result.events.filter(pl.col("kind") == "missed").is_empty()


def test_idle_sessions_are_forgotten() -> None:
    trace = ONE.with_columns(session=pl.Series(["a", "b"]))
    config = EngineConfig(kv_blocks=100, block_size=4, session_retention=SessionRetentionSettings())
    result, _ = run(trace, config, FailsOnce({1}))
    event = result.events.filter(pl.col("kind") == "session_evicted").row(0, named=True)
    assert (event["detail"], event["amount"], event["time"]) == ("restart: b", 5, result.steps["end"][0])


def test_copies_in_host_memory_outlive_it() -> None:
    """Two requests of which one is swapped out; then the engine fails when the other one decodes alone."""
    trace = pl.DataFrame(
        {"request_id": [0, 1], "arrival": [0.0, 0.0], "prompt_tokens": [30, 30], "output_tokens": [40, 40]}
    )
    config = EngineConfig(kv_blocks=25, block_size=4, enable_prefix_caching=False, swap_blocks=100)
    # The step that copies has one decode left, so the copy is never made; then request 1 has to compute all again.
    lost, _ = run(trace, config, FailsOnce({1}))
    assert lost.requests["preemptions"].to_list() == [1, 1]
    assert lost.events.filter(pl.col("kind") == "copy").is_empty()
    kept, _ = run(trace, config, FailsSecond())
    assert kept.requests["preemptions"].to_list() == [1, 1]
    assert kept.events.filter(pl.col("kind") == "copy")["amount"].to_list() == [12, 12]


@dataclass
class FailsSecond(FailsOnce):
    """Where one sequence decodes, the first step copies, and the second, a batch of its own, fails."""

    decodes: set[int] = field(default_factory=set)
    alone: int = 0

    def begin(self, plan: Plan, now: float) -> StepCost:
        self.alone += plan.decodes == 1
        return StepCost(once=SECONDS, restart=True) if self.alone == 2 and plan.decodes == 1 else StepCost()
