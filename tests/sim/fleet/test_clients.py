"""Clients give up at their limits and not before, and try again as often, as late and as many at once as they may."""

from typing import Any

import polars as pl
import pytest
from constant_steps import CONSTANT, PLAIN, STEP
from engine_workloads import configs, traces
from failing_fleets import run_failing
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal
from short_traces import trace_of

from sim.engine.config import EngineConfig


@settings(max_examples=36, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 60), st.integers(1, 40)), min_size=1, max_size=8),
    st.none() | st.floats(0.01, 0.3),
    st.none() | st.floats(0.02, 1.0),
    st.none() | st.floats(0.02, 1.0),
    st.booleans(),
)
def test_one_alone_gives_up_if_it_would_have_taken_longer(
    sizes: list[tuple[int, int]], ttft: float | None, timeout: float | None, deadline: float | None, ahead: bool
) -> None:
    """Each comes when those before it have long gone."""
    if timeout is not None and ttft is not None:
        timeout += ttft
    if (ttft, timeout, deadline) == (None, None, None):
        return
    trace = trace_of(*((10.0 * number, prompt, output) for number, (prompt, output) in enumerate(sizes)))
    config = PLAIN.model_copy(update={"async_scheduling": ahead})
    plain = run_failing(trace, config, replicas=1).run.requests
    limits = {"ttft_timeout": ttft, "timeout": timeout, "deadline": deadline}
    result = run_failing(trace, config, replicas=1, clients=limits)
    for row in plain.iter_rows(named=True):
        arrival, number = row["arrival"], row["request_id"]
        late = [
            arrival + limit
            for limit, comes in ((ttft, row["first_token"]), (timeout, row["finish"]), (deadline, row["finish"]))
            if limit is not None and comes >= arrival + limit
        ]
        assert result.statuses[number] == ("timed_out" if late else "finished")
        gave_up = result.run.events.filter(kind="timed_out", request_id=number)
        assert gave_up["time"].to_list() == ([min(late)] if late else [])
        if not late:
            assert result.run.requests.row(number) == plain.row(number)


@pytest.mark.parametrize("leap", [True, False])
def test_what_comes_at_the_limit_is_too_late(leap: bool) -> None:
    trace = trace_of((0.0, 10, 7), (100.0, 10, 8))
    result = run_failing(trace, PLAIN, replicas=1, times=CONSTANT, clients={"timeout": 8 * STEP}, leap=leap)
    assert result.statuses == ["finished", "timed_out"]
    for limit, status in ((STEP, "timed_out"), (1.01 * STEP, "finished")):
        first = run_failing(trace, PLAIN, replicas=1, times=CONSTANT, clients={"ttft_timeout": limit}, leap=leap)
        assert first.statuses == [status, status]


@pytest.mark.parametrize(("delay", "first_token"), [(0.0, 51), (0.5 * STEP, 52), (8 * STEP, 59)])
@pytest.mark.parametrize("leap", [True, False])
def test_the_seat_of_who_gave_up_is_free_once_the_service_has_noticed(
    delay: float, first_token: int, leap: bool
) -> None:
    one_seat = PLAIN.model_copy(update={"max_num_seqs": 1})
    trace = trace_of((0.0, 10, 800), (49.5 * STEP, 10, 10))
    clients = {"timeout": 50 * STEP, "abort_delay": delay}
    result = run_failing(trace, one_seat, replicas=1, times=CONSTANT, clients=clients, leap=leap)
    assert result.statuses == ["timed_out", "finished"]
    assert result.run.requests["first_token"][1] == first_token * STEP


@settings(max_examples=48, deadline=None)
@given(
    st.integers(2, 5),
    st.sampled_from([0.0, 0.1, 0.5, 2.0]),
    st.sampled_from([0.2, 1.0, 8.0]),
    st.integers(0, 100),
)
def test_a_retry_waits_no_longer_than_its_limit(attempts: int, base: float, most: float, seed: int) -> None:
    """Nobody is admitted: every attempt is shed at once, so the waits are all that passes."""
    trace = trace_of(*((0.001 * number, 10, 10_000 if number == 0 else 5) for number in range(20)))
    retries = {"attempts": attempts, "backoff_base": base, "backoff_max": most}
    result = run_failing(
        trace,
        PLAIN,
        replicas=1,
        times=CONSTANT,
        clients={"retries": retries},
        admission={"policy": "max_outstanding", "fleet": 1},
        seed=seed,
    )
    assert result.statuses == ["finished"] + ["shed"] * 19
    again = result.run.events.filter(kind="retried").sort("request_id", "amount")
    for number in range(1, 20):
        own = again.filter(request_id=number)
        assert own["amount"].to_list() == list(range(2, attempts + 1))
        assert own["detail"].to_list() == ["shed"] * (attempts - 1)
        for retry, wait in enumerate(own["seconds"]):
            assert 0.0 <= wait <= min(most, base * 2**retry) + 1e-9
        assert float(own["seconds"].sum()) == pytest.approx((own["time"][-1] - 0.001 * number), abs=1e-9)
    if base:
        assert again["seconds"].n_unique() > len(again) // 2


def test_waits_are_spread_over_all_that_is_allowed() -> None:
    """Full jitter: uniform from nothing on."""
    trace = trace_of(*((0.001 * number, 10, 100_000 if number == 0 else 5) for number in range(800)))
    clients = {"retries": {"attempts": 2, "backoff_base": 1.0}}
    only_one = {"policy": "max_outstanding", "fleet": 1}
    config = PLAIN.model_copy(update={"kv_blocks": 100_000})
    run = run_failing(trace, config, replicas=1, times=CONSTANT, clients=clients, admission=only_one).run
    waits = run.events.filter(kind="retried")["seconds"].sort()
    assert len(waits) == 799
    furthest = max(abs(wait - (place + 0.5) / 799) for place, wait in enumerate(waits))
    assert furthest < 1.63 / 799**0.5  # Kolmogorov and Smirnov, 1 %


@settings(max_examples=36, deadline=None)
@given(configs(block_size=4), traces(), st.sampled_from([0.0, 20.0, 50.0, 100.0]), st.integers(0, 4))
def test_there_are_no_more_retries_at_once_than_the_budget_has(
    config: EngineConfig, trace: pl.DataFrame, percent: float, least: int
) -> None:
    """Counted from the tables: a retry begins when an attempt ends, and ends with the attempt that it sends."""
    budget = {"percent": percent, "min_concurrency": least}
    clients = {"retries": {"attempts": 4, "backoff_base": 0.3, "budget": budget}}
    failures = {"random": [{"kind": "crash", "mtbf": 0.3}], "restart_seconds": 0.05}
    result = run_failing(trace, config, clients=clients, failures=failures)
    events = result.run.events
    retried = events.filter(kind="retried")
    most = max(int(percent / 100 * len(trace)), least)
    sent = retried["time"].to_list()
    if most == 0:
        assert not sent
    ends = {row["request_id"]: row["finish"] for row in result.run.requests.iter_rows(named=True)}
    # Those that are with the service at an instant, as far as the tables tell: sent, and finished later.
    for time in sent:
        with_it = {
            number
            for number, begun in zip(retried["request_id"], sent, strict=True)
            if begun <= time and ends[number] is not None and ends[number] > time
        }
        assert len(with_it) <= most


def test_a_deadline_ends_the_waiting_too() -> None:
    """The first is served until its deadline, and the second shed till then."""
    trace = trace_of((0.0, 10, 1000), (0.5, 10, 2))
    clients: dict[str, Any] = {
        "deadline": 3.0,
        "retries": {"attempts": 1000, "backoff_base": 0.2, "backoff_max": 0.2},
    }
    only_one = {"policy": "max_outstanding", "fleet": 1}
    result = run_failing(trace, PLAIN, replicas=1, times=CONSTANT, clients=clients, admission=only_one)
    assert result.statuses == ["timed_out", "finished"]
    assert result.run.requests["finish"][1] <= 3.5
    together = trace_of((0.0, 10, 1000), (0.0, 10, 2))
    result = run_failing(together, PLAIN, replicas=1, times=CONSTANT, clients=clients, admission=only_one)
    gave_up = result.run.events.filter(kind="timed_out").sort("request_id")
    assert gave_up.select("time", "request_id", "detail").rows() == [
        (3.0, 0, "deadline"),
        (3.0, 1, "deadline, while it waited to be sent again"),
    ]


def test_nothing_is_sent_again_before_the_service_has_noticed() -> None:
    clients = {
        "timeout": 0.5,
        "abort_delay": 2.0,
        "retries": {"on": ["timed_out"], "attempts": 3, "backoff_base": 0.0},
    }
    result = run_failing(trace_of((0.0, 10, 1000)), PLAIN, replicas=1, times=CONSTANT, clients=clients)
    assert result.statuses == ["timed_out"]
    told = result.run.events.filter(pl.col("kind").is_in(["timed_out", "retried"]))
    assert told.select("time", "kind", "amount").rows() == [
        (0.5, "timed_out", 1),
        (2.5, "retried", 2),
        (3.0, "timed_out", 2),
        (5.0, "retried", 3),
        (5.5, "timed_out", 3),
    ]
    assert result.run.steps["end"].max() == 7.5, "the last attempt was computed until that was noticed"


def test_latency_counts_from_the_first_sending() -> None:
    trace = trace_of((0.0, 10, 8))
    clients = {"retries": {"attempts": 2, "backoff_base": 0.5}}
    failures = {"script": [{"kind": "crash", "at": 0.3}], "restart_seconds": 2.0}
    run = run_failing(trace, PLAIN, replicas=1, times=CONSTANT, clients=clients, failures=failures).run
    assert run.requests["first_scheduled"][0] == 2.3
    assert run.requests["ttft"][0] == 2.3 + STEP
    assert run.requests["e2e"][0] == pytest.approx(2.3 + 8 * STEP)
    assert run.requests["replica"][0] == 1


@settings(max_examples=24, deadline=None)
@given(configs(block_size=4), traces(), st.sampled_from([0.05, 0.2]))
def test_one_draw_changes_no_other(config: EngineConfig, trace: pl.DataFrame, timeout: float) -> None:
    """The wait of a request's retry is its own: what others do does not move it."""
    clients = {"timeout": timeout, "retries": {"on": ["timed_out"], "attempts": 2, "backoff_base": 1.0}}
    both = [run_failing(trace, config, clients=clients, replicas=replicas).run for replicas in (1, 2)]
    waits = [run.events.filter(kind="retried").select("request_id", "seconds") for run in both]
    same = waits[0].join(waits[1], on="request_id", suffix="_other")
    assert_frame_equal(same.select("seconds"), same.select(pl.col("seconds_other").alias("seconds")), check_exact=False)
