"""Requests that hold and read no more than so many tokens: counted as one by one, leap as step, never a block more."""

from collections.abc import Sequence
from typing import Any

import polars as pl
import pytest
from engine_workloads import LinearStepTimes, configs, traces
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal
from pydantic import ValidationError
from step_sums import check_that_nothing_is_lost, single_steps

from sim.engine.config import EngineConfig
from sim.engine.request import Request
from sim.engine.scheduler import Scheduler
from sim.fleet.equal_replicas import equal_replicas
from sim.fleet.fleet import FleetRun


@st.composite
def capped(draw: st.DrawFn) -> EngineConfig:
    """With a window, and perhaps a prefix cache of its sinks, or with a budget, in a pool in which not all fit."""
    config = draw(configs(block_size=4))
    sinks, window = 4 * draw(st.integers(0, 3)), 4 * draw(st.integers(1, 6))
    pruning: dict[str, Any] = {"window": {"sinks": sinks, "window": window}}
    if draw(st.booleans()):
        pruning = {"heavy_hitters": {"budget": 4 * draw(st.integers(1, 9))}}
    given: dict[str, Any] = {name: getattr(config, name) for name in config.model_fields_set}
    if "heavy_hitters" in pruning:
        given["enable_prefix_caching"] = False
    given |= {"swap_blocks": 0, "pruning": pruning, "kv_blocks": draw(st.integers(10, 30))}
    given["prefill_policy"] = draw(st.sampled_from(["mixed", "mixed", "prefill_first", "decode_first"]))
    return EngineConfig(**given)


def most_of(config: EngineConfig) -> int:
    assert config.pruning is not None
    most = config.pruning.most_tokens(config.block_size)
    assert most is not None
    return most


def run(trace: pl.DataFrame, config: EngineConfig, *, leap: bool) -> FleetRun:
    return equal_replicas(trace, config, LinearStepTimes(), replicas=1, seed=3, leap=leap).run()


@settings(max_examples=50, deadline=None)
@given(capped(), traces())
def test_leap_equals_step(config: EngineConfig, trace: pl.DataFrame) -> None:
    leapt, stepped = (run(trace, config, leap=leap) for leap in (True, False))
    assert_frame_equal(leapt.requests, stepped.requests, check_exact=True)
    assert single_steps(leapt.steps) == single_steps(stepped.steps)
    assert set(leapt.steps["end"]) <= set(stepped.steps["end"])
    check_that_nothing_is_lost(trace, config, leapt)


class Visited:
    """A scheduler's requests, visited one by one."""

    def __init__(self, scheduler: Scheduler, most: int) -> None:
        self.scheduler, self.most = scheduler, most

    def check(self, plan: Any) -> None:
        size = self.scheduler.config.block_size
        decoding = self.scheduler.decoding(plan)
        contexts = [self.scheduler.context(request) for request in decoding]
        assert plan.decodes == len(decoding)
        assert plan.kv_tokens == sum(min(context, self.most) for context in contexts)
        assert plan.full == sum(context >= self.most for context in contexts)
        held: set[int] = set()
        tokens = {request: context + 1 for request, context in zip(decoding, contexts, strict=True)}
        tokens |= {chunk.request: chunk.start + chunk.tokens for chunk in plan.chunks}
        for request, count in tokens.items():
            table = self.scheduler.block_table(request)
            assert len(table) == -(-min(count, self.most) // size)
            held |= set(table)
        assert len(held) <= self.scheduler.pool.held


@settings(max_examples=50, deadline=None)
@given(capped(), traces(), st.lists(st.integers(1, 50), min_size=60, max_size=60))
def test_sums_are_those_of_requests_that_are_visited(
    config: EngineConfig, trace: pl.DataFrame, leaps: list[int]
) -> None:
    """Stepped or leapt; who was preempted comes back, and a request never holds more blocks than it may."""
    scheduler = Scheduler(config, spread=False)
    visited = Visited(scheduler, most_of(config))
    due = [Request(*row) for row in trace.iter_rows()]
    now, left, turn = 0.0, len(due), 0
    running = None
    while left:
        while due and due[0].arrival * 20 <= now:
            scheduler.add(due.pop(0))
        plan = scheduler.schedule(now)
        if plan is None and running is None:
            now = due[0].arrival * 20 if due else now + 1
            continue
        steps = 1
        if plan is not None:
            visited.check(plan)
            horizon = scheduler.horizon(plan)
            steps = min(horizon, leaps[turn % len(leaps)]) if not config.async_scheduling else 1
            scheduler.advance(plan, steps)
        turn += 1
        now += steps
        assert now < 20_000
        done = running if config.async_scheduling else plan
        if done is not None:
            left -= len(scheduler.complete(done, now))
        running = plan
    assert scheduler.pool.held == 0
    assert scheduler._batch.full == scheduler._batch.kv_tokens == 0
    assert not any(scheduler._batch.at_edge)


def one(prompt: int, output: int, ids: Sequence[int] = ()) -> dict[str, Any]:
    return {"prompt_tokens": prompt, "output_tokens": output, "prefix_ids": list(ids), "prefix_block_tokens": 4}


def table(*rows: dict[str, Any]) -> pl.DataFrame:
    numbered = [{"request_id": number, "arrival": float(number), **row} for number, row in enumerate(rows)]
    return pl.DataFrame(numbered, schema_overrides={"prefix_ids": pl.List(pl.Int64)})


def test_a_long_answer_stays_within_its_window() -> None:
    config = EngineConfig(kv_blocks=9, block_size=4, pruning={"window": {"sinks": 8, "window": 24}})
    steps = run(table(one(50, 500)), config, leap=True).steps
    assert steps["kv_blocks"].max() == 9
    # Once it is full nothing changes until it ends: one leap.
    assert steps["steps"].to_list() == [1, 499]
    assert steps["kv_tokens"].to_list() == [0, 36]


def test_a_budget_fills_up_and_is_then_one_leap() -> None:
    config = EngineConfig(kv_blocks=8, block_size=4, pruning={"heavy_hitters": {"budget": 32}})
    steps = run(table(one(20, 100)), config, leap=True).steps
    assert steps["steps"].to_list() == [1, 12, 87]
    assert steps["kv_tokens"].to_list() == [0, 20, 32]


def test_the_prefix_cache_has_the_sinks_alone() -> None:
    config = EngineConfig(kv_blocks=40, block_size=4, pruning={"window": {"sinks": 12, "window": 8}})
    ids = range(100, 115)
    requests = run(table(one(60, 2, ids), one(60, 2, ids)), config, leap=True).requests
    assert requests["cached_tokens"].to_list() == [0, 12]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"pruning": {}}, "no policy is given; expected one of skip_layers, "),
        ({"pruning": {"window": {"window": 30}}}, "pruning.window.window is 30; expected whole blocks of 16 tokens"),
        ({"pruning": {"window": {"window": 32, "sinks": 3}}}, "pruning.window.sinks is 3; expected whole blocks"),
        ({"pruning": {"heavy_hitters": {"budget": 40}}}, "pruning.heavy_hitters.budget is 40; expected whole blocks"),
        ({"pruning": {"heavy_hitters": {"budget": 32, "recent": 32}}}, "recent is 32; expected fewer than the budget"),
        (
            {"pruning": {"heavy_hitters": {"budget": 32}}, "enable_prefix_caching": True},
            "pruning.heavy_hitters is given and enable_prefix_caching is true; expected no prefix cache",
        ),
        ({"pruning": {"window": {"window": 32}}, "swap_blocks": 4}, "pruning.window is given and swap_blocks is 4"),
        ({"pruning": {"window": {"window": 32}}, "session_retention": {}}, "and session_retention is given"),
        ({"pruning": {"window": {"window": 32}, "heavy_hitters": {"budget": 32}}}, "window and heavy_hitters are both"),
        ({"pruning": {"skip_layers": {"every": 2}}, "data_parallel": 2}, "pruning is given and data_parallel is 2"),
        ({"pruning": {"skip_layers": {"every": 2}}, "pipeline_parallel": 2}, "pipeline_parallel is 2"),
        ({"pruning": {"shared_kv": {}}, "kv_cache": False}, "pruning is given and kv_cache is false"),
        ({"pruning": {"window": {"window": 32}}, "kv_reservation": "oracle"}, "and kv_reservation is oracle"),
        ({"pruning": {"skip_layers": {"layers": [3], "every": 2}}}, "expected either layers or every"),
        ({"pruning": {"skip_mlp": {"layers": [3, 3]}}}, r"layers are \[3, 3\]; expected rising numbers"),
        ({"pruning": {"early_exit": {"layers": [3, 1]}}}, r"layers are \[3, 1\]; expected rising numbers"),
    ],
)
def test_what_does_not_go_together_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        EngineConfig(kv_blocks=10, **given)
