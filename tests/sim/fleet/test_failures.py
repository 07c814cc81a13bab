"""Crashes, slow nodes and links that lose bandwidth: what happens when, and to whom."""

from math import inf
from typing import Any

import polars as pl
import pytest
from constant_steps import CONSTANT, PLAIN, STEP
from engine_workloads import configs, traces
from failing_fleets import failure_settings, run_failing
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from short_traces import trace_of

from ground.errors import UserError
from sim.engine.config import EngineConfig
from sim.fleet.links.network import Network
from sim.fleet.reliability.failure_settings import FailureSettings
from sim.fleet.reliability.failures import Failures
from sim.fleet.world import World
from sim.results.recorder import RequestRecorder


def crash(at: float, **more: Any) -> dict[str, Any]:
    return {"script": [{"kind": "crash", "at": at}], "restart_seconds": 1.0, **more}


def test_what_a_crashed_replica_had_fails_and_another_comes_in_its_place() -> None:
    trace = trace_of((0.0, 10, 100), (0.1, 10, 100), (3.0, 10, 2))
    result = run_failing(trace, PLAIN, replicas=1, times=CONSTANT, failures=crash(2.2))
    assert result.statuses == ["failed", "failed", "finished"]
    requests = result.run.requests
    assert requests["finish"].to_list()[:2] == [None, None]
    assert requests["first_scheduled"][2] == 3.2, "held until the other had started"
    replicas = result.run.replicas
    assert replicas.select("requested", "ready", "ended", "why").rows() == [
        (0.0, 0.0, 2.2, "crashed"),
        (2.2, 3.2, None, None),
    ]
    kinds = result.run.events.select("time", "replica", "kind", "amount").rows()
    assert kinds == [(2.2, 0, "crashed", 2), (2.2, 1, "restarted", 1)]
    assert result.run.steps.filter(replica=0)["end"].max() == 17 * STEP, "the step under way did not end"


def test_without_restarts_who_comes_later_is_held_for_ever() -> None:
    trace = trace_of((0.0, 10, 100), (3.0, 10, 2))
    failures = {"script": [{"kind": "crash", "at": 2.2}], "restarts": False}
    result = run_failing(trace, PLAIN, replicas=1, times=CONSTANT, failures=failures)
    assert result.statuses == ["failed", "unfinished"]
    assert len(result.run.replicas) == 1


@pytest.mark.parametrize(
    ("failover", "statuses"),
    [
        ("none", ["failed", "failed"]),
        ("before_first_token", ["failed", "finished"]),
        ("all", ["finished", "finished"]),
    ],
)
def test_the_router_sends_on_what_it_may(failover: str, statuses: list[str]) -> None:
    """Of two requests one decodes and the other waits for its seat."""
    one_seat = PLAIN.model_copy(update={"max_num_seqs": 1})
    trace = trace_of((0.0, 10, 100), (0.1, 10, 3))
    result = run_failing(trace, one_seat, replicas=1, times=CONSTANT, failures=crash(2.2, failover=failover))
    assert result.statuses == statuses
    again = result.run.events.filter(kind="retried")["request_id"].to_list()
    assert again == [number for number, status in enumerate(statuses) if status == "finished"]
    if failover == "all":
        assert result.run.requests["first_token"][0] == 3.2 + STEP, "it begins anew"


def test_the_router_gives_up_after_as_many_crashes_as_it_may() -> None:
    script = [{"kind": "crash", "at": 1.0 * second + 0.2} for second in range(5)]
    failures = {"script": script, "restart_seconds": 0.1, "failover": "all", "failover_limit": 3}
    result = run_failing(trace_of((0.0, 10, 100)), PLAIN, replicas=1, times=CONSTANT, failures=failures)
    assert result.statuses == ["failed"]
    assert result.run.events.filter(kind="retried")["amount"].to_list() == [2, 3, 4]


def test_a_slow_node_is_slow_for_as_long_as_it_says() -> None:
    trace = trace_of((0.0, 10, 40))
    script = [{"kind": "slow", "at": 10.5 * STEP, "factor": 4.0, "duration": 8 * STEP}]
    run = run_failing(trace, PLAIN, replicas=1, times=CONSTANT, failures={"script": script}).run
    # Step 10 ends as it was; the next one begins at 11 and takes 4, the one after it begins at 15 and ends at 19.
    assert run.requests["finish"][0] == (11 + 2 * 4 + 27) * STEP
    told = run.events.filter((pl.col("kind") == "slowed") & pl.col("seconds").is_null())
    assert told.select("time", "detail").rows() == [
        (10.5 * STEP, "steps take 4 times as long"),
        (18.5 * STEP, "steps take 1 times as long"),
    ]
    assert run.events.filter(kind="slowed")["seconds"].sum() == pytest.approx(2 * 3 * STEP)


def test_the_slowest_of_what_slows_a_node_counts() -> None:
    script = [
        {"kind": "slow", "at": 0.0, "factor": 2.0, "duration": 100 * STEP},
        {"kind": "slow", "at": 4 * STEP, "factor": 4.0, "duration": 8 * STEP},
    ]
    run = run_failing(trace_of((0.0, 10, 10)), PLAIN, replicas=1, times=CONSTANT, failures={"script": script}).run
    assert run.requests["finish"][0] == (2 * 2 + 2 * 4 + 6 * 2) * STEP


def test_a_place_is_one_of_those_who_serve() -> None:
    script = [{"kind": "crash", "at": 0.3, "replica": 1}, {"kind": "crash", "at": 0.4, "replica": 7}]
    trace = trace_of(*((0.1 * number, 10, 20) for number in range(3)))
    failures = {"script": script, "restarts": False}
    run = run_failing(trace, PLAIN, replicas=3, times=CONSTANT, failures=failures, router="round_robin").run
    assert run.replicas["why"].to_list() == [None, "crashed", None]
    assert run.requests["status"].to_list() == ["finished", "failed", "finished"]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_random_crashes_come_at_their_rate(seed: int) -> None:
    """Over 400 s of one replica that is there nearly always, with a mean of 10 s between crashes: 40 ± 4 deviations."""
    trace = trace_of(*((4.0 * number, 10, 1) for number in range(101)))
    failures = {"random": [{"kind": "crash", "mtbf": 10.0}], "restart_seconds": 0.0}
    run = run_failing(trace, PLAIN, replicas=1, times=CONSTANT, failures=failures, seed=seed).run
    crashes = run.events.filter(kind="crashed")
    assert abs(len(crashes) - 40) <= 4 * 40**0.5
    assert len(run.replicas) == len(crashes) + 1


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_nothing_fails_once_all_requests_have_ended(seed: int) -> None:
    """A repair that takes long is no reason for more failures, which would need repairs in their turn."""
    failures = {
        "script": [{"kind": "slow", "at": 0.0, "factor": 2.0, "duration": 100.0}],
        "random": [{"kind": "slow", "mtbf": 1.0, "factor": 3.0, "duration": 0.5}],
    }
    run = run_failing(trace_of((0.0, 10, 20), (4.0, 10, 20)), PLAIN, times=CONSTANT, failures=failures, seed=seed).run
    again = run.events.filter(kind="slowed", detail="steps take 3 times as long")
    assert (again["time"] <= run.requests["finish"].max()).all()
    assert run.events["time"].max() == 100.0


@settings(max_examples=36, deadline=None)
@given(configs(block_size=4), traces(), failure_settings(), st.integers(1, 3))
def test_every_crash_has_its_rows(
    config: EngineConfig, trace: pl.DataFrame, failures: dict[str, Any], replicas: int
) -> None:
    run = run_failing(trace, config, failures=failures, replicas=replicas).run
    crashed = run.events.filter(kind="crashed")
    gone = run.replicas.filter(pl.col("why") == "crashed")
    assert sorted(crashed.select("replica", "time").rows()) == sorted(gone.select("replica", "ended").rows())
    restarted = run.events.filter(kind="restarted")
    assert len(restarted) == (len(crashed) if failures["restarts"] else 0)
    assert len(run.replicas) == replicas + len(restarted)
    lost = int(crashed["amount"].sum())
    sent_on = len(run.events.filter(kind="retried"))
    assert lost - sent_on == run.requests["status"].to_list().count("failed")
    for replica, end in gone.select("replica", "ended").rows():
        assert (run.steps.filter(pl.col("replica") == replica)["end"] <= end).all()
    if not failures["random"]:
        at = [failure["at"] for failure in failures["script"]]
        assert set(crashed["time"]) <= set(at)


def world() -> World:
    return World(RequestRecorder(pl.Series([1]).to_numpy(), pl.Series([1]).to_numpy()))


def test_a_link_keeps_the_least_share_of_all_that_befalls_it() -> None:
    one = world()
    network = Network(one.clock)
    one.networks.append(network)
    link = network.link("kv", 100.0)
    arrived: list[float] = []
    network.transfer((link,), 1000, lambda: arrived.append(one.clock.now))
    script = [
        {"kind": "link", "link": "kv", "at": 2.0, "factor": 0.5, "duration": 6.0},
        {"kind": "link", "link": "kv", "at": 4.0, "factor": 0.0, "duration": 2.0},
    ]
    Failures(one, FailureSettings.model_validate({"script": script}))
    one.clock.run_out()
    # 200 bytes whole, 100 at half, nothing for 2 s, 100 at half, 600 whole.
    assert arrived == [pytest.approx(14.0)]
    events = one.events.take_table()
    assert events.select("time", "amount").rows() == [(2.0, 50), (4.0, 0), (6.0, 50), (8.0, 100)]
    assert events["detail"].to_list() == ["kv"] * 4


def test_names_of_links_and_pools_are_checked() -> None:
    one = world()
    one.clock.timeout(5.0)
    Failures(one, FailureSettings.model_validate({"script": [{"kind": "link", "link": "x", "at": 1.0, "factor": 0.5}]}))
    with pytest.raises(UserError, match="there is no link 'x'; the links are: none"):
        one.clock.run_out()
    other = world()
    other.clock.timeout(5.0)
    network = Network(other.clock)
    other.networks.append(network)
    network.link("x", inf)
    Failures(
        other, FailureSettings.model_validate({"script": [{"kind": "link", "link": "x", "at": 1.0, "factor": 0.5}]})
    )
    with pytest.raises(UserError, match="link 'x' is unlimited"):
        other.clock.run_out()
    for failures in (
        {"random": [{"kind": "crash", "mtbf": 1.0, "pool": "decode"}]},
        {"script": [{"kind": "crash", "at": 1.0, "pool": "decode"}]},
    ):
        with pytest.raises(UserError, match="there is no pool 'decode'; expected one of ''"):
            run_failing(trace_of((0.0, 1, 1)), PLAIN, failures={**failures, "restarts": False})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "nothing is given that fails"),
        ({"script": [{"kind": "slow", "at": 1.0}]}, "expected 1 or more"),
        ({"script": [{"kind": "slow", "at": 1.0, "factor": 0.5}]}, "expected 1 or more"),
        ({"script": [{"kind": "crash", "at": 1.0, "factor": 2.0}]}, "expected none"),
        ({"script": [{"kind": "crash", "at": 1.0, "duration": 2.0}]}, "expected restart_seconds"),
        ({"script": [{"kind": "crash", "at": 1.0, "replica": -1}]}, "expected a place"),
        ({"script": [{"kind": "link", "at": 1.0, "factor": 0.5}]}, "expected the name of a link"),
        ({"script": [{"kind": "link", "at": 1.0, "factor": 1.5, "link": "x"}]}, "expected 0 to 1"),
        ({"random": [{"kind": "slow", "mtbf": 1.0, "factor": 2.0}]}, "expected the seconds"),
        ({"random": [{"kind": "crash", "mtbf": 1.0, "duration": 2.0}]}, "expected none"),
    ],
)
def test_settings_are_checked(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        FailureSettings.model_validate(given)
