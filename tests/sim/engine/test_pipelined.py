"""Engines of several stages: vLLM's rule of batches in flight, step by step, and leaps that give the same bits."""

from collections import deque

import numpy as np
import polars as pl
import pytest
from engine_workloads import computed_together, configs, traces
from hypothesis import given, settings
from hypothesis import strategies as st
from pipelined_step_times import PipelinedStepTimes
from polars.testing import assert_frame_equal
from short_traces import trace_of
from simpy.events import NORMAL
from step_sums import check_that_nothing_is_lost

from ground.errors import UserError
from ground.spec import check_spec
from sim.engine.config import EngineConfig
from sim.fleet.equal_replicas import equal_replicas
from sim.fleet.fleet import FleetRun


def run(trace: pl.DataFrame, config: EngineConfig, *, leap: bool = True, replicas: int = 1, **law: float) -> FleetRun:
    times = PipelinedStepTimes(count=config.pipeline_parallel, **law)  # type: ignore[arg-type]
    return equal_replicas(trace, config, times, replicas=replicas, leap=leap).run()


def staged(config: EngineConfig, stages: int) -> EngineConfig:
    return config.model_copy(update={"pipeline_parallel": stages, "swap_blocks": 0})


@settings(max_examples=100, deadline=None)
@given(configs(block_size=4), traces(), st.integers(2, 4), st.integers(1, 2))
def test_leap_equals_step(config: EngineConfig, trace: pl.DataFrame, stages: int, replicas: int) -> None:
    config = staged(config, stages)
    leapt, stepped = (run(trace, config, leap=leap, replicas=replicas) for leap in (True, False))
    assert_frame_equal(leapt.requests, stepped.requests, check_exact=True)
    for column in ("steps", "prefill_tokens", "preempted"):
        assert leapt.steps[column].sum() == stepped.steps[column].sum()
    assert (leapt.steps["steps"] * leapt.steps["decode_seqs"]).sum() == stepped.steps["decode_seqs"].sum()
    for column in ("start", "end"):
        assert set(leapt.steps[column]) <= set(stepped.steps[column])


@settings(max_examples=200, deadline=None)
@given(computed_together(), st.integers(2, 3))
def test_leap_equals_step_where_a_blocked_head_loses_what_was_cached(
    case: tuple[EngineConfig, pl.DataFrame], stages: int
) -> None:
    config, trace = staged(case[0], stages), case[1]
    leapt, stepped = (run(trace, config, leap=leap) for leap in (True, False))
    assert_frame_equal(leapt.requests, stepped.requests, check_exact=True)


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 4), st.lists(st.integers(1, 60), min_size=1, max_size=12), st.integers(40, 90), st.data())
def test_long_answers_leap_and_give_the_same_bits(
    stages: int, prompts: list[int], output: int, data: st.DataObject
) -> None:
    """Long enough that batches go round many times, with arrivals in between."""
    arrivals = sorted(data.draw(st.lists(st.floats(0, 3), min_size=len(prompts), max_size=len(prompts))))
    trace = trace_of(*((at, prompt, output + prompt % 7) for at, prompt in zip(arrivals, prompts, strict=True)))
    blocks = data.draw(st.sampled_from([60, 120, 1000]))
    config = EngineConfig(kv_blocks=blocks, block_size=4, max_num_seqs=8, pipeline_parallel=stages)
    leapt, stepped = (run(trace, config, leap=leap) for leap in (True, False))
    assert_frame_equal(leapt.requests, stepped.requests, check_exact=True)
    assert leapt.steps["steps"].sum() == stepped.steps["steps"].sum()
    assert len(leapt.steps) < len(stepped.steps)
    assert leapt.event_count < stepped.event_count


@settings(max_examples=80, deadline=None)
@given(st.integers(2, 4), st.lists(st.integers(1, 60), min_size=1, max_size=10), st.data())
def test_clients_that_go_and_engines_that_slow_down_and_stop_cut_a_leap_exactly(
    stages: int, prompts: list[int], data: st.DataObject
) -> None:
    count = len(prompts)
    times = st.floats(0, 2)
    arrivals = sorted(data.draw(st.lists(times, min_size=count, max_size=count)))
    trace = trace_of(*((at, prompt, 50 + prompt) for at, prompt in zip(arrivals, prompts, strict=True)))
    aborts = data.draw(st.dictionaries(st.integers(0, count - 1), times, max_size=4))
    slow = data.draw(st.lists(st.tuples(times, st.sampled_from([1.0, 1.5, 3.0])), max_size=3))
    crash = data.draw(st.none() | times)
    blocks = data.draw(st.sampled_from([60, 1000]))
    config = EngineConfig(kv_blocks=blocks, block_size=4, max_num_seqs=6, pipeline_parallel=stages)

    def one(leap: bool) -> tuple[FleetRun, list[tuple[float, int, int, float]]]:
        fleet = equal_replicas(trace, config, PipelinedStepTimes(count=stages), leap=leap)
        clock, pool = fleet.world.clock, fleet.service
        (replica,), gauges = pool.members, []  # type: ignore[attr-defined]

        def gone(request_id: int) -> None:
            request = replica.outstanding.get(request_id)
            if request is not None:
                pool.abort(request)

        for request_id, time in aborts.items():
            clock.at(time, NORMAL).callbacks = [lambda _, request_id=request_id: gone(request_id)]
        for time, factor in slow:
            clock.at(time, NORMAL).callbacks = [lambda _, factor=factor: replica.engine.slow(factor)]
        for time in (0.1, 0.5, 1.0, 1.7):
            clock.at(time, NORMAL).callbacks = [lambda _: gauges.append((clock.now, *replica.engine.gauge))]
        if crash is not None:
            clock.at(crash, NORMAL).callbacks = [lambda _: replica.engine.stop()]
        return fleet.run(), gauges

    (leapt, seen), (stepped, also_seen) = one(True), one(False)
    assert_frame_equal(leapt.requests, stepped.requests, check_exact=True)
    for column in ("steps", "prefill_tokens", "preempted"):
        assert leapt.steps[column].sum() == stepped.steps[column].sum()
    if crash is None:
        assert seen == also_seen
        left = {request for request, time in aborts.items() if leapt.requests["status"][request] == "unfinished"}
        assert set(leapt.requests.filter(pl.col("status") == "unfinished")["request_id"]) == left


@settings(max_examples=100, deadline=None)
@given(configs(), traces(id_tokens=16), st.integers(2, 4))
def test_nothing_is_lost(config: EngineConfig, trace: pl.DataFrame, stages: int) -> None:
    config = staged(config, stages)
    check_that_nothing_is_lost(trace, config, run(trace, config))


@settings(max_examples=60, deadline=None)
@given(configs(), traces(), st.integers(2, 4))
def test_no_stage_has_two_batches_and_no_more_are_in_flight_than_stages(
    config: EngineConfig, trace: pl.DataFrame, stages: int
) -> None:
    steps = run(trace, staged(config, stages), leap=False).steps.filter(pl.col("end") > pl.col("start"))
    starts, ends = steps["start"].to_numpy(), steps["end"].to_numpy()
    assert (np.diff(ends) >= 0).all() and (np.diff(starts) >= 0).all(), "out as they went in"
    for start in starts:
        assert ((starts <= start) & (ends > start)).sum() <= stages


def by_hand(trace: pl.DataFrame, config: EngineConfig, times: PipelinedStepTimes) -> pl.DataFrame:
    """When each request has its first and its last token, by a loop over every request, batch and stage; with blocks
    for all, without a prefix cache, first come first served."""
    rows = list(trace.select("request_id", "arrival", "prompt_tokens", "output_tokens").iter_rows())
    waiting, running = deque(rows), []
    computed = dict.fromkeys(range(len(rows)), 0)
    in_flight: dict[int, bool] = {}
    first, last = {}, {}
    free, flight, now = [0.0] * times.count, deque(), 0.0

    def form(now: float) -> list[tuple[int, int, int]]:
        """(request, tokens, cached tokens)"""
        budget, batch = config.max_num_batched_tokens, []
        arrived = []
        while waiting and waiting[0][1] <= now and len(running) + len(arrived) < config.max_num_seqs:
            arrived.append(waiting.popleft())
        for index, (request, _, prompt, output) in enumerate([*running, *arrived]):
            new = index >= len(running)
            done = computed[request]
            if done < prompt:
                tokens = min(prompt - done, budget, config.long_prefill_token_threshold or prompt)
            elif in_flight.get(request) or done - prompt >= output - 1:
                continue
            else:
                tokens = min(1, budget)
            if not tokens:
                if new:
                    break
                continue
            batch.append((request, tokens, done))
            budget -= tokens
        admitted = {request for request, _, _ in batch}
        for row in reversed(arrived):
            if row[0] not in admitted:
                waiting.appendleft(row)
        running.extend(row for row in arrived if row[0] in admitted)
        return batch

    while len(last) < len(rows):
        batch = form(now) if len(flight) < times.count else []
        if batch:
            prefills = [(tokens, done) for request, tokens, done in batch if done < rows[request][2]]
            decodes = [done for request, _, done in batch if done >= rows[request][2]]
            seconds = times.stages(prefills, len(decodes), sum(decodes))
            sent = times.sends(sum(tokens for tokens, _ in prefills), len(decodes))
            at = now
            for stage, own in enumerate(seconds):
                at = max(at, free[stage]) + own
                free[stage] = at
                at += sent if stage < times.count - 1 else 0.0
            for request, tokens, done in batch:
                computed[request] = done + tokens
                in_flight[request] = done + tokens >= rows[request][2]
            flight.append((at, batch))
            if len(flight) < times.count:
                continue
        if not flight:
            now = max(now, waiting[0][1])
            continue
        now, batch = flight.popleft()
        for request, tokens, done in batch:
            _, _, prompt, output = rows[request]
            if done + tokens >= prompt:
                in_flight[request] = False
                first.setdefault(request, now)
                if done + tokens == prompt + output - 1:
                    last[request] = now
                    running[:] = [row for row in running if row[0] != request]
    order = range(len(rows))
    return pl.DataFrame({"first_token": [first[i] for i in order], "finish": [last[i] for i in order]})


@settings(max_examples=100, deadline=None)
@given(traces(), st.integers(2, 4), st.integers(1, 8), st.integers(0, 40), st.none() | st.integers(4, 24))
def test_times_are_those_of_a_loop_over_every_request(
    trace: pl.DataFrame, stages: int, seats: int, more: int, threshold: int | None
) -> None:
    config = EngineConfig(
        kv_blocks=10_000,
        block_size=4,
        max_num_seqs=seats,
        # Enough for all that decode beside a prompt, so that nobody is left out of his batch.
        max_num_batched_tokens=seats + 60 + more,
        long_prefill_token_threshold=threshold,
        enable_prefix_caching=False,
        pipeline_parallel=stages,
    )
    trace = trace.with_columns(priority=pl.lit(0, pl.Int64))
    times = PipelinedStepTimes(count=stages)
    result = equal_replicas(trace, config, times).run().requests.select("first_token", "finish")
    expected = by_hand(trace, config, times)
    for column in ("first_token", "finish"):
        assert result[column].to_list() == pytest.approx(expected[column].to_list(), rel=1e-9)


CONSTANT = {"base": 0.2, "per_token": 0.0, "per_kv": 0.0, "per_sent_token": 0.0, "extra": (0.0, 0.0, 0.0, 0.0)}


def test_a_lone_request_gets_nothing_from_more_stages() -> None:
    """Each token passes all stages before the next begins: three quarters of four stages are a bubble."""
    config = EngineConfig(kv_blocks=100, pipeline_parallel=4)
    result = run(trace_of((0.0, 10, 5)), config, **CONSTANT)  # type: ignore[arg-type]
    assert result.requests["finish"].to_list() == pytest.approx([5 * 0.2])


def test_two_batches_fill_two_stages() -> None:
    """Prompts that do not fit one budget part into two batches, which then take turns on the stages."""
    config = EngineConfig(kv_blocks=100, max_num_seqs=8, max_num_batched_tokens=10, pipeline_parallel=2)
    result = run(trace_of((0.0, 10, 11), (0.0, 10, 11)), config, **CONSTANT)  # type: ignore[arg-type]
    assert result.requests["first_token"].to_list() == pytest.approx([0.2, 0.3])
    assert result.requests["finish"].to_list() == pytest.approx([2.2, 2.3]), "as fast as each alone"


def test_chunks_of_one_prompt_are_in_different_stages_at_once() -> None:
    config = EngineConfig(kv_blocks=100, max_num_seqs=8, max_num_batched_tokens=10, pipeline_parallel=2)
    result = run(trace_of((0.0, 80, 1)), config, **CONSTANT)  # type: ignore[arg-type]
    assert result.requests["finish"].to_list() == pytest.approx([0.1 * (8 + 1)]), "instead of 8 × 0.2"


@pytest.mark.parametrize("leap", [True, False])
def test_who_arrives_waits_until_a_batch_comes_out(leap: bool) -> None:
    """The engine waits for the oldest batch where it could form no other."""
    config = EngineConfig(kv_blocks=100, pipeline_parallel=2)
    result = run(trace_of((0.0, 10, 100), (0.25, 10, 2)), config, leap=leap, **CONSTANT)  # type: ignore[arg-type]
    assert result.requests["first_scheduled"].to_list() == pytest.approx([0.0, 0.4])


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"data_parallel": 2}, "data_parallel"),
        ({"swap_blocks": 5}, "swap_blocks"),
        ({"kv_cache": False}, "kv_cache false"),
        ({"kv_reservation": "pow2"}, "kv_reservation pow2"),
    ],
)
def test_what_is_not_modelled_together_is_refused(other: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=f"pipeline_parallel is 2 and {said} is given"):
        check_spec(EngineConfig, {"kv_blocks": 10, "pipeline_parallel": 2, **other}, "the engine")
