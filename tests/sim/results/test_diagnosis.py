"""Every second has a cause: the parts sum to the latency, and are what was really computed and waited for."""

from collections import defaultdict
from itertools import pairwise

import numpy as np
import polars as pl
import pytest
from diagnosis_runs import Planted, simulated, step_latency, trace_of
from engine_workloads import configs, traces
from hypothesis import given, settings
from hypothesis import strategies as st
from run_tables import queue_run

from calibrate.latency import StepLatency
from ground.errors import UserError
from sim.engine.config import EngineConfig
from sim.engine.host_work import HostWorkSettings
from sim.results.diagnosis.attribution import cause_columns, preempted_intervals
from sim.results.diagnosis.causes import CAUSES, STEP_CAUSES
from sim.results.diagnosis.diagnosis import HOUR, Diagnosis, diagnose, summary
from sim.results.diagnosis.row_causes import row_causes
from sim.results.diagnosis.words import trend_sentence
from sim.results.folder import Run
from sim.results.tables import EVENTS, STEPS

HOSTS = [None, None, HostWorkSettings(per_step=0.002, per_session=0.0005)]
STALLS = ("graph", "allocator", "restart")


@st.composite
def runs(draw: st.DrawFn, *, engines: int = 1) -> tuple[Run, StepLatency, EngineConfig]:
    """Small runs with any mechanism: overlap, swap, preemption, prefix cache, host work, stalls, ranks, skew."""
    config = draw(configs(block_size=4)).model_copy(update={"data_parallel": engines})
    mixed = draw(st.booleans())
    times = step_latency(
        config,
        mixed=mixed,
        overhead=draw(st.booleans()),
        graphs=draw(st.sampled_from([(), (1, 2, 4, 8, 16, 32)])),
        ranks=draw(st.sampled_from([1, 2])) if engines == 1 else 1,
        skewed=mixed and engines == 1 and draw(st.booleans()),
        experts=engines > 1,
    )
    stalls = draw(st.lists(st.sampled_from(STALLS), max_size=2, unique=True)) if engines == 1 else []
    each = draw(st.sampled_from([0.0, 0.001]))
    run = simulated(
        draw(traces()),
        config,
        times,
        sources=lambda replica, events: [Planted(events, replica, kind, 0.02, each) for kind in stalls],
        host=draw(st.sampled_from(HOSTS)) if engines == 1 else None,
        replicas=draw(st.integers(1, 2)),
        leap=draw(st.booleans()),
    )
    return run, times, config


def check_sums(run: Run, found: Diagnosis, *, rounding: float = 1e-9) -> None:
    table = found.attributed
    parts = np.stack([table[name].to_numpy() for name in cause_columns(table)])
    latency, finish = table["e2e"].to_numpy(), table["finish"].to_numpy()
    assert np.abs(parts.sum(axis=0) - latency) == pytest.approx(0, abs=1e-9 * latency.min())
    # An instant that is far from 0 is itself rounded.
    assert (np.abs(table["other"].to_numpy()) <= rounding * latency + 1e-14 * finish).all()
    assert (parts >= -(rounding * latency + 1e-14 * finish)).all()
    total = run.requests.filter(pl.col("status") == "finished")["e2e"].sum()
    assert sum(found.all.causes.values()) * found.all.requests == pytest.approx(total, rel=1e-9)
    assert sum(found.slowest.causes.values()) == pytest.approx(found.slowest.mean, rel=1e-9)


@settings(max_examples=75, deadline=None)
@given(runs())
def test_the_parts_sum_to_the_latency(case: tuple[Run, StepLatency, EngineConfig]) -> None:
    run, times, _ = case
    found = diagnose(run, times, measured=False)
    check_sums(run, found)
    assert found.explained is None and not found.notes  # the profile is recognised as the run's own


@settings(max_examples=40, deadline=None)
@given(runs(engines=2))
def test_engines_in_lock_step_sum_too(case: tuple[Run, StepLatency, EngineConfig]) -> None:
    run, times, _ = case
    found = diagnose(run, times, measured=False)
    check_sums(run, found)
    assert found.explained is not None and "lock-step" in found.notes[0]


@settings(max_examples=40, deadline=None)
@given(runs(), st.floats(0.5, 3.0))
def test_measured_steps_sum_too(case: tuple[Run, StepLatency, EngineConfig], slower: float) -> None:
    """As if a real engine took `slower` times as long, and some time between its steps, with no stall written down."""
    run, times, config = case
    if config.async_scheduling:
        return  # its leaps are no steps of a real engine
    scale = [pl.col(name) * slower for name in ("start", "end")]
    steps = run.steps.with_columns(scale).with_columns(pl.col("end") - 1e-4 * slower)
    steps = steps.filter(pl.col("end") > pl.col("start"))
    times_of = ("arrival", "first_scheduled", "first_token", "finish", "ttft", "e2e", "queue")
    requests = run.requests.with_columns(pl.col(name) * slower for name in times_of)
    events = run.events.filter(~pl.col("kind").is_in(STALLS)).with_columns(
        pl.col("time") * slower, seconds=pl.lit(None, pl.Float64)
    )
    measured = Run(requests, steps, {}, {}, [], events=events)
    if len(steps):
        found = diagnose(measured, times, measured=True)
        check = found.attributed
        parts = np.stack([check[name].to_numpy() for name in cause_columns(check)])
        assert parts.sum(axis=0) == pytest.approx(check["e2e"].to_numpy(), rel=1e-9)
        assert (parts[:-1] >= -1e-9).all()
        assert found.explained is not None and found.explained > 0


@settings(max_examples=50, deadline=None)
@given(runs())
def test_running_sums_are_the_direct_sum(case: tuple[Run, StepLatency, EngineConfig]) -> None:
    """Each request visits each row, and takes the part of it that lies within its stay."""
    run, times, _ = case
    rows = row_causes(run, times, simulated=True)
    attributed = diagnose(run, times, measured=False).attributed
    owner, lost, again = preempted_intervals(attributed, run.events)
    starts, ends, replicas = (rows.rows[name].to_numpy() for name in ("start", "end", "replica"))
    for index, request in enumerate(attributed.iter_rows(named=True)):
        away = sorted((lost[i], again[i]) for i in np.flatnonzero(owner == index))
        cuts = [request["arrival"], request["first_scheduled"], *(time for pair in away for time in pair)]
        cuts.append(request["finish"])
        expected: dict[str, float] = defaultdict(float)
        for place, (begin, end) in enumerate(pairwise(cuts)):
            waits = "queueing" if place == 0 else "preempted" if place % 2 == 0 else ""
            if waits:
                expected[waits] += end - begin
            for row in np.flatnonzero(replicas == request["replica"]):
                share = max(0.0, min(end, ends[row]) - max(begin, starts[row])) / (ends[row] - starts[row])
                for cause, seconds in rows.seconds.items():
                    if not waits:
                        expected[cause] += seconds[row] * share
                    elif cause == "restart":  # for which nobody runs
                        expected[cause] += seconds[row] * share
                        expected[waits] -= seconds[row] * share
        for cause in cause_columns(attributed):
            assert request[cause] == pytest.approx(expected[cause], abs=1e-9 * request["e2e"] + 1e-12), cause


def test_what_was_computed_again_is_told_apart() -> None:
    """Two requests that share too few blocks: one is preempted, and computed again."""
    config = EngineConfig(kv_blocks=25, block_size=4, enable_prefix_caching=False)
    times = step_latency(config)
    run = simulated(trace_of(2, gap=0.0, prompt=30, output=40), config, times)
    again = run.events.filter(pl.col("kind") == "recomputed")
    assert again["amount"].sum() == 48
    found = diagnose(run, times, measured=False)
    row = run.steps.join(again.select(start="time"), on="start").row(0, named=True)
    victim = found.attributed.filter(pl.col("preemptions") == 1).row(0, named=True)
    assert 0 < victim["recompute"] <= row["end"] - row["start"]
    lost, resumed = (run.events.filter(pl.col("kind") == kind)["time"][0] for kind in ("preempted", "resumed"))
    assert victim["preempted"] == pytest.approx(resumed - lost)


def test_a_wait_for_weights_is_no_queueing() -> None:
    times = step_latency()
    config = EngineConfig(kv_blocks=100)
    run = simulated(trace_of(3, gap=0.0, prompt=20, output=5), config, times)
    late = run.requests.with_columns(
        pl.col(name) + 2.0 for name in ("first_scheduled", "first_token", "finish", "ttft", "e2e", "queue")
    )
    steps = run.steps.with_columns(pl.col("start") + 2.0, pl.col("end") + 2.0)
    load = {
        "time": 0.0,
        "replica": 0,
        "kind": "model_load",
        "request_id": 1,
        "seconds": 1.5,
        "amount": 7,
        "detail": None,
    }
    events = pl.concat([run.events, pl.DataFrame([load], schema=EVENTS)])
    found = diagnose(Run(late, steps, {}, {}, [], events=events), times, measured=False).attributed
    assert found["model_load"].to_list() == [0.0, 1.5, 0.0]
    assert found["queueing"].to_list() == pytest.approx([2.0, 0.5, 2.0])


def test_a_wait_for_weights_is_no_wait_for_a_restart() -> None:
    """Three arrive while the engine starts anew for 5 s. One waits for its weights until after that, one for part of
    it, one not at all."""
    config = EngineConfig(kv_blocks=100)
    times = step_latency(config)
    run = simulated(
        trace_of(1, gap=0.0, prompt=20, output=5),
        config,
        times,
        sources=lambda replica, events: [Planted(events, replica, "restart", 5.0)],
    )
    first = run.requests.row(0, named=True)
    late = {name: first[name] + 10.0 for name in ("first_scheduled", "first_token", "finish")}
    arrived = pl.DataFrame([{**first, **late, "request_id": i, "arrival": 1.0} for i in (1, 2, 3)], run.requests.schema)
    arrived = arrived.with_columns(e2e=pl.col("finish") - pl.col("arrival"))
    steps = pl.concat([run.steps, run.steps.with_columns(pl.col("start", "end") + 10.0)])
    loads = [(1, 8.0), (2, 3.0)]  # the first 4 s of each wait lie in the restart
    events = pl.DataFrame(
        [
            dict.fromkeys(EVENTS)
            | {"time": 1.0, "replica": 0, "kind": "model_load", "request_id": request, "seconds": seconds}
            for request, seconds in loads
        ],
        schema=EVENTS,
    )
    requests = pl.concat([run.requests, arrived])
    found = diagnose(Run(requests, steps, {}, {}, [], events=pl.concat([run.events, events])), times, measured=False)
    waited = found.attributed.filter(pl.col("request_id") > 0)
    assert waited["model_load"].to_list() == [8.0, 3.0, 0.0]
    # A part of it in proportion to the row, which also has the step's kernels.
    restart = [0.0, 1.0, 4.0]
    assert waited["restart"].to_list() == pytest.approx(restart, abs=0.1)
    assert waited["queueing"].to_list() == pytest.approx([1.0, 5.0, 5.0], abs=0.1)


def test_another_profile_is_noticed() -> None:
    config = EngineConfig(kv_blocks=400)
    run = simulated(trace_of(20, gap=0.001, prompt=40, output=30), config, step_latency(config))
    other = step_latency(config, overhead=True)
    found = diagnose(run, other, measured=False)
    assert "no longer" in found.notes[0]
    assert found.explained is not None and found.explained > 1
    check_sums(run, found)


def test_without_steps_the_first_token_parts_two_causes() -> None:
    requests, _ = queue_run(300)
    run = Run(requests.with_columns(first_scheduled=pl.lit(None, pl.Float64)), pl.DataFrame(schema=STEPS), {}, {}, [])
    found = diagnose(run, None, measured=True)
    finished = requests.filter(pl.col("status") == "finished")
    assert found.left_out == {"rejected": 6}
    assert found.attributed["before_first_token"].to_list() == pytest.approx(finished["ttft"].to_list())
    assert found.attributed["after_first_token"].to_list() == pytest.approx(
        (finished["e2e"] - finished["ttft"]).to_list()
    )
    assert "no table of its engine's steps" in found.notes[0]
    assert summary(found)["requests"] == {"finished": 294, "left_out": {"rejected": 6}}


def test_no_finished_request_is_said() -> None:
    requests, steps = queue_run(100)
    with pytest.raises(UserError, match="no request finished; expected one at least"):
        diagnose(Run(requests.filter(pl.col("status") == "rejected"), steps, {}, {}, []), None, measured=True)


@pytest.mark.parametrize(("span", "what"), [(2.5 * HOUR, "first hour against last"), (900.0, "first third against")])
def test_the_trend_compares_the_ends_of_the_run(span: float, what: str) -> None:
    """Later requests have longer answers."""
    count = 60
    outputs = [10 + 5 * i for i in range(count)]
    config = EngineConfig(kv_blocks=400)
    times = step_latency(config)
    trace = trace_of(count, gap=span / (count - 1), prompt=40, output=1).with_columns(output_tokens=pl.Series(outputs))
    found = diagnose(simulated(trace, config, times), times, measured=False)
    assert found.trend is not None and what in found.trend.what
    width = HOUR if span > 2 * HOUR else span / 3
    arrival, e2e = found.attributed["arrival"].to_numpy(), found.attributed["e2e"].to_numpy()
    assert found.trend.first.mean == pytest.approx(e2e[arrival < width].mean())
    assert found.trend.last.mean == pytest.approx(e2e[arrival > arrival.max() - width].mean())
    assert found.trend.last.causes["decode_weights"] > 3 * found.trend.first.causes["decode_weights"]
    assert found.trend.main == "decode_weights"
    assert "rose from" in trend_sentence(found) and "decode weights changed by +" in trend_sentence(found)
    assert found.trend.first.causes["queueing"] == found.trend.last.causes["queueing"] == 0.0


def test_the_slowest_are_a_hundredth() -> None:
    config = EngineConfig(kv_blocks=40)
    times = step_latency(config)
    trace = trace_of(250, gap=0.0, prompt=40, output=9)
    found = diagnose(simulated(trace, config, times), times, measured=False)
    assert found.slowest.requests == 3
    assert found.slowest.mean == pytest.approx(np.sort(found.attributed["e2e"].to_numpy())[-3:].mean())


def test_every_step_cause_is_a_cause() -> None:
    assert set(STEP_CAUSES) < set(CAUSES)
