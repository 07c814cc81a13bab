"""Adapters: as many run at once as may, requests of others are passed over and not blocked."""

from dataclasses import replace
from typing import Any

import polars as pl
import pytest
from engine_workloads import BURST, LinearStepTimes, configs, traces
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from ground.errors import UserError
from sim.engine.config import EngineConfig
from sim.engine.request import Request
from sim.engine.scheduler import Scheduler
from sim.fleet.equal_replicas import equal_replicas
from sim.fleet.fleet import FleetRun
from sim.fleet.weights.adapters import with_adapters
from sim.study.scenario import scenario_of
from sim.study.simulate import load_trace, simulate
from traces.table import Trace

adapter_names = st.lists(st.none() | st.sampled_from("abcdef"), min_size=30, max_size=30)


def named(trace: pl.DataFrame, adapters: list[str | None]) -> pl.DataFrame:
    return trace.with_columns(adapter=pl.Series(adapters[: len(trace)], dtype=pl.String))


def run(trace: pl.DataFrame, config: EngineConfig, *, leap: bool = True) -> FleetRun:
    return equal_replicas(trace, config, LinearStepTimes(), leap=leap).run()


def most_at_once(trace: pl.DataFrame, requests: pl.DataFrame) -> int:
    """Of the distinct adapters between whose first steps and last tokens a request of theirs was."""
    spans = requests.select("first_scheduled", "finish").with_columns(adapter=trace["adapter"]).drop_nulls("adapter")
    return max(
        (
            spans.filter((pl.col("first_scheduled") <= time) & (pl.col("finish") > time))["adapter"].n_unique()
            for time in spans["first_scheduled"]
        ),
        default=0,
    )


@settings(max_examples=100, deadline=None)
@given(configs(block_size=4), traces(), adapter_names, st.integers(1, 4))
def test_leap_equals_step(config: EngineConfig, trace: pl.DataFrame, adapters: list[str | None], limit: int) -> None:
    config = config.model_copy(update={"max_loras": limit})
    leapt, stepped = (run(named(trace, adapters), config, leap=leap) for leap in (True, False))
    assert_frame_equal(leapt.requests, stepped.requests, check_exact=True)


@settings(max_examples=100, deadline=None)
@given(configs(block_size=4), traces(), adapter_names, st.integers(1, 4))
def test_all_finish_and_no_more_adapters_run_than_may(
    config: EngineConfig, trace: pl.DataFrame, adapters: list[str | None], limit: int
) -> None:
    """With blocks for all nobody is preempted, so who has begun runs until he has ended."""
    update = {"max_loras": limit, "kv_blocks": 1000, "async_scheduling": False}
    trace = named(trace, adapters)
    requests = run(trace, config.model_copy(update=update)).requests
    assert requests["status"].to_list() == ["finished"] * len(trace)
    assert most_at_once(trace, requests) <= limit


@settings(max_examples=60, deadline=None)
@given(configs(block_size=4), traces(), adapter_names)
def test_room_for_all_adapters_is_no_limit(
    config: EngineConfig, trace: pl.DataFrame, adapters: list[str | None]
) -> None:
    trace = named(trace, adapters)
    limited = run(trace, config.model_copy(update={"max_loras": 6}))
    assert_frame_equal(limited.requests, run(trace, config).requests, check_exact=True)
    assert_frame_equal(limited.steps, run(trace, config).steps, check_exact=True)


def requests_of(*adapters: str | None, **options: Any) -> list[Request]:
    return [Request(number, 0.0, 8, 3, adapter=adapter, **options) for number, adapter in enumerate(adapters)]


def admitted(scheduler: Scheduler) -> list[int]:
    plan = scheduler.schedule(0.0)
    assert plan is not None
    scheduler.finish(plan, 0.0)
    return [chunk.request.request_id for chunk in plan.chunks]


def test_others_pass_who_keeps_his_place() -> None:
    """One adapter at a time: b waits, those of a and of the base model behind it do not."""
    scheduler = Scheduler(EngineConfig(kv_blocks=100, max_loras=1))
    first, b, base, second = requests_of("a", "b", None, "a")
    later = Request(9, 1.0, 8, 1, adapter="c")
    for request in (first, b, base, second, later):
        scheduler.add(request)
    assert admitted(scheduler) == [0, 2, 3]
    assert admitted(scheduler) == [] == admitted(scheduler)  # they decode, and end
    assert admitted(scheduler) == [1]  # and c, who came last, waits for b


@pytest.mark.parametrize("policy", ["fcfs", "priority"])
def test_the_first_of_those_who_may_run_is_taken(policy: Any) -> None:
    scheduler = Scheduler(EngineConfig(kv_blocks=100, max_loras=2, max_num_seqs=3, scheduling_policy=policy))
    for request in requests_of("a", "b", "c", "b", None, "a"):
        scheduler.add(request)
    assert admitted(scheduler) == [0, 1, 3]


def test_a_bucket_has_its_turn_whatever_the_adapters() -> None:
    config = EngineConfig(kv_blocks=100, max_loras=2, scheduling_policy="length_buckets")
    scheduler = Scheduler(config)
    for number, (prompt, adapter) in enumerate([(8, "a"), (100, "a"), (8, "b")]):
        scheduler.add(Request(number, 0.0, prompt, 3, adapter=adapter))
    assert admitted(scheduler) == [0, 2, 1]


def test_an_arrival_behind_those_who_are_passed_over_may_run_at_once() -> None:
    """What cuts a leap: `add` says whether the next step may differ."""
    scheduler = Scheduler(EngineConfig(kv_blocks=100, max_loras=1))
    a, b = requests_of("a", "b")
    assert scheduler.add(a)
    admitted(scheduler)
    assert not scheduler.add(b)
    assert scheduler.add(Request(2, 0.0, 8, 3, adapter="a"))
    assert not scheduler.add(Request(3, 0.0, 8, 3, adapter="b"))


BASE = "Llama-3.1-8B"


def adapter_trace() -> Trace:
    trace = load_trace(scenario_of({**BURST, "engine": {"preset": "vllm-0.11"}}, {}))
    models = [BASE if number % 5 == 0 else f"adapter-{number % 4}" for number in range(len(trace.requests))]
    return replace(trace, requests=trace.requests.with_columns(model=pl.Series(models)))


def test_in_a_scenario_the_trace_says_the_adapters() -> None:
    trace = adapter_trace()
    waits = {}
    for limit in (None, 4, 1):
        engine = {"preset": "vllm-0.11"} if limit is None else {"preset": "vllm-0.11", "max_loras": limit}
        result = simulate(scenario_of({**BURST, "engine": engine}, {}), trace)
        waits[limit] = result.requests["queue"].sum()
        told = [each for each in result.assumptions if each.name == "engine.max_loras"]
        assert [each.value for each in told] == ([] if limit is None else [limit])
        named = with_adapters(trace.requests, BASE)
        if limit == 1:
            assert most_at_once(named, result.requests) == 1
    assert waits[1] > 2 * waits[4] and waits[4] == waits[None]


def test_a_trace_without_models_is_an_error() -> None:
    scenario = scenario_of({**BURST, "engine": {"preset": "vllm-0.11", "max_loras": 2}}, {})
    with pytest.raises(UserError, match=r"engine\.max_loras: found a trace that names no model"):
        simulate(scenario)


def test_the_scenarios_model_is_no_adapter() -> None:
    table = pl.DataFrame({"model": ["base", "x", None]})
    assert with_adapters(table, "base")["adapter"].to_list() == [None, "x", None]
