"""A pool that is scaled serves every request once, ends, is the same every time, and has what its tables say."""

from typing import Any

import numpy as np
import polars as pl
import pytest
from engine_workloads import traces
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal
from scaled_fleets import COLD, PLAIN, SLOW, asked_over_time, cold_starts, day, fleet, requests_at, scaled, scalers

from sim.fleet.autoscaler import PATIENCE
from sim.fleet.autoscaling.observation import HELD, WAITING
from sim.fleet.fleet import FleetRun

DOWN = {"scale_down": {"stabilisation_window": 30}}
HPA = {"policy": "hpa", "metrics": [{"average_value": 3.0}], **DOWN}
POLICIES: list[dict[str, Any]] = [
    HPA,
    {"policy": "keda", "polling_interval": 10.0, "cooldown_period": 30.0, **DOWN},
    {"policy": "planner", "predictor": "constant", "throughput_interval": 30.0, "ttft": 0.5, "itl": 0.08},
    {"policy": "predictive", "forecaster": "naive", "interval": 15.0, "ttft": 0.5, "itl": 0.08, "down_window": 30.0},
    {"policy": "schedule", "steps": [{"at": 0, "replicas": 2}, {"at": 60, "replicas": 9}, {"at": 180, "replicas": 2}]},
]


def scale_events(result: FleetRun) -> pl.DataFrame:
    return result.events.filter(pl.col("kind") == "scaled")


def assert_same(one: FleetRun, other: FleetRun) -> None:
    for name in ("requests", "events", "replicas"):
        assert_frame_equal(getattr(one, name), getattr(other, name))


@settings(deadline=None, max_examples=30)
@given(traces(), scalers(), cold_starts(), st.integers(0, 3))
def test_every_request_ends_once_whatever_comes_and_goes(
    trace: pl.DataFrame, scaler: dict[str, Any], cold: dict[str, Any] | None, replicas: int
) -> None:
    config = PLAIN.model_copy(update={"max_num_seqs": 2})
    if scaler["policy"] == "hpa":
        replicas = max(1, replicas)  # at zero it is disabled
    made = fleet(trace, scaler, cold=cold, replicas=replicas, config=config)
    ended: list[int] = []
    told = made._ended
    pool_told = made.service._on_end
    made.service._on_end = lambda request, status: (ended.append(request.request_id), pool_told(request, status))[1]
    result = made.run()
    assert told is not None
    unfinished = result.requests.filter(pl.col("status") != "finished")
    # A schedule may leave nobody there for good; whoever came after that is held and never served.
    assert unfinished["replica"].to_list() == [-1] * len(unfinished)
    assert sorted(ended) == result.requests.filter(pl.col("status") == "finished")["request_id"].to_list()
    assert len(set(ended)) == len(ended)
    for replica in (*made.service._pool.members, *made.service._pool.draining, *made.service._pool.starting):
        assert not replica.outstanding


@settings(deadline=None, max_examples=20)
@given(traces(), scalers(), cold_starts(), st.integers(1, 3))
def test_leaps_and_steps_are_scaled_alike(
    trace: pl.DataFrame, scaler: dict[str, Any], cold: dict[str, Any] | None, replicas: int
) -> None:
    config = PLAIN.model_copy(update={"max_num_seqs": 2})
    leaping, stepping = (
        scaled(trace, scaler, cold=cold, replicas=replicas, config=config, leap=leap) for leap in (True, False)
    )
    assert_same(leaping, stepping)


@pytest.mark.parametrize("policy", POLICIES, ids=lambda one: one["policy"])
def test_a_day_is_served_and_its_replicas_follow_the_load(policy: dict[str, Any]) -> None:
    trace = day()
    result = scaled(trace, policy, cold=COLD, times=SLOW)
    assert (result.requests["status"] == "finished").all()
    end = result.requests["finish"].max()
    assert isinstance(end, float)
    asked = asked_over_time(result, 0.0, end)
    calm, busy = asked[: len(asked) // 8], asked[len(asked) * 3 // 8 : len(asked) * 5 // 8]
    assert busy.mean() > 1.5 * calm.mean()
    assert busy.mean() > asked[-len(asked) // 20 :].mean()
    # The integral of the table of replicas is what is counted instant by instant.
    spans = result.replicas.select(pl.col("requested").clip(0.0, end), pl.col("ended").fill_null(end).clip(0.0, end))
    assert float((spans["ended"] - spans["requested"]).sum()) == pytest.approx(asked.mean() * end, rel=2e-3)
    # What was decided is what there is: the number asked for after each decision.
    told = dict(zip(scale_events(result)["time"].to_list(), scale_events(result)["amount"].to_list(), strict=True))
    for time, amount in told.items():
        rows = result.replicas.filter((pl.col("requested") <= time) & (pl.col("ended").fill_null(np.inf) > time))
        draining = rows.filter(pl.col("why") == "scaled down").filter(pl.col("ended") > time)
        assert len(rows) >= amount >= len(rows) - len(draining)
    assert_same(result, scaled(trace, policy, cold=COLD, times=SLOW))


def test_more_load_is_never_served_by_a_fleet_that_does_not_grow() -> None:
    trace = day()
    fixed, grown = scaled(trace, None, times=SLOW), scaled(trace, HPA, times=SLOW)
    assert grown.requests["ttft"].quantile(0.9) < fixed.requests["ttft"].quantile(0.9) / 10
    assert len(grown.replicas) > 1 == len(fixed.replicas)


def test_a_policy_that_changes_nothing_changes_no_bit() -> None:
    trace = day(60)
    still = scaled(trace, {"policy": "schedule", "steps": [{"at": 0, "replicas": 3}]}, replicas=3)
    assert_same(still, scaled(trace, None, replicas=3))


def test_a_decision_sees_the_scrape_before_it() -> None:
    """Twenty requests come at 6 s and wait; scrapes are at 5, 10, ..., and of equal instants the decision is first."""
    trace = requests_at([6.0] * 20, output_tokens=900)
    config = PLAIN.model_copy(update={"max_num_seqs": 2})
    for scrape, first in ((5.0, 15.0), (0.0, 10.0), (10.0, 15.0), (20.0, 25.0)):
        result = scaled(trace, {**HPA, "scrape_interval": scrape}, config=config)
        assert scale_events(result)["time"][0] == first
        assert scale_events(result)["detail"][0] == f"hpa: {WAITING}"


def test_from_zero_requests_are_held_until_a_replica_has_started() -> None:
    trace = requests_at([3.0, 3.1, 50.0])
    policy = {"policy": "keda", "cooldown_period": 20.0, "polling_interval": 5.0, "triggers": [{"metric": HELD}]}
    result = scaled(trace, policy, cold=COLD, replicas=0)
    assert scale_events(result)["amount"].to_list() == [1, 0, 1, 0][: len(scale_events(result))]
    assert scale_events(result)["time"][0] == pytest.approx(3.7)  # it was told of the held requests
    ready = 3.7 + 7.0 + 4.0 + 1.5
    assert result.replicas["ready"].to_list()[:1] == pytest.approx([ready])
    assert result.requests["first_scheduled"].to_list()[:2] == pytest.approx([ready, ready])
    assert result.requests["replica"].to_list() == [0, 0, 1]
    assert (result.requests["status"] == "finished").all()


def test_who_leaves_first() -> None:
    """Pending before starting before ready ones, of each the youngest; or of the ready ones the least loaded."""
    steps = [{"at": 0, "replicas": 2}, {"at": 20, "replicas": 5}, {"at": 30, "replicas": 3}, {"at": 60, "replicas": 2}]
    schedule = {"policy": "schedule", "steps": steps}
    # The fifth finds no room on a node of four, and its own takes longer than the others' engines.
    cold = {"node_provision": 50.0, "engine_init": 20.0, "nodes": {"gpus": 4, "ready": 1}}
    result = scaled(requests_at([1.0, 100.0]), schedule, cold=cold, replicas=2)
    gone = result.replicas.filter(pl.col("ended").is_not_null()).sort("ended", "replica")
    assert gone.select("replica", "ended").rows() == [(3, 30.0), (4, 30.0), (2, 60.0)]
    assert gone["ready"].to_list() == [None, None, 40.0]
    # Of three the youngest alone has something to do.
    busy = requests_at([1.0] * 3).with_columns(output_tokens=pl.Series([1, 1, 2000]))
    steps = [{"at": 0, "replicas": 3}, {"at": 10, "replicas": 2}]
    for victims, expected in (("youngest", 2), ("least_loaded", 1)):
        done = scaled(busy, {"policy": "schedule", "steps": steps, "victims": victims}, replicas=3)
        gone = done.replicas.filter(pl.col("ended").is_not_null())
        assert gone["replica"].to_list() == [expected]
        assert (gone["ended"][0] > 10.0) == (victims == "youngest")  # it serves what it has
        assert (done.requests["status"] == "finished").all()


def test_a_drained_replica_serves_what_it_has_and_gets_nothing_more() -> None:
    trace = requests_at(np.linspace(0.1, 30.0, 300).tolist(), output_tokens=200)
    result = scaled(
        trace, {"policy": "schedule", "steps": [{"at": 0, "replicas": 4}, {"at": 15, "replicas": 1}]}, replicas=4
    )
    gone = result.replicas.filter(pl.col("ended").is_not_null())
    assert len(gone) == 3
    for replica, ended in gone.select("replica", "ended").rows():
        own = result.requests.filter(pl.col("replica") == replica)
        assert own["arrival"].max() <= 15.0
        assert own["finish"].max() == ended > 15.0


def test_a_pool_that_stays_empty_is_given_up_and_says_so() -> None:
    """Nobody is ever asked for: the run ends, its requests unfinished."""
    policy = {"policy": "keda", "triggers": [{"metric": WAITING}], "sync_interval": 3600.0, "scrape_interval": 3600.0}
    result = scaled(requests_at([1.0]), policy, replicas=0)
    assert result.requests["status"].to_list() == ["unfinished"]
    late = {"policy": "schedule", "min": 0, "steps": [{"at": PATIENCE - 10_000, "replicas": 1}]}
    patient = scaled(requests_at([1.0]), {**late, "sync_interval": 3600.0, "scrape_interval": 0.0}, replicas=0)
    assert patient.requests["status"].to_list() == ["finished"]
