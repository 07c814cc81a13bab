"""Failures and clients of a scenario, through the whole of it: none is lost, and the diagnosis tells what it cost."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from ground.errors import UserError
from sim.results.diagnosis.causes import CAUSES
from sim.results.diagnosis.diagnosis import Diagnosis, diagnose
from sim.results.folder import Run
from sim.results.metric_names import STATUSES, metric
from sim.study.deployment import deploy
from sim.study.pool_scenario import step_times_of
from sim.study.scenario import Scenario, make_scenario
from sim.study.simulate import simulate

LOAD: dict[str, Any] = {
    "model": "Llama-3.1-8B",
    "profile": "datasheet:h100-sxm-80gb",
    "trace": {
        "synth": {
            "requests": 150,
            "arrivals": {"process": "poisson", "rate": 15.0},
            "lengths": {
                "prompt": {"distribution": "uniform", "low": 200, "high": 900},
                "output": {"distribution": "uniform", "low": 20, "high": 200},
            },
        }
    },
}
CRASHES = {"script": [{"kind": "crash", "at": 2.0}, {"kind": "crash", "at": 5.0}], "restart_seconds": 2.0}
SLOW = {"kind": "slow", "at": 0.0, "replica": 0, "factor": 12.0}
RETRIES = {"retries": {"attempts": 5, "backoff_base": 0.2}}
POOLS = {
    "prefill": {"replicas": 2},
    "decode": {"replicas": 2},
    "link": {"bandwidth": 25e9, "latency": 1e-5},
}


def scenario(**fleet: Any) -> Scenario:
    given = {} if "disaggregation" in fleet else {"replicas": 2, "router": "least_outstanding"}
    return make_scenario({**LOAD, "fleet": {**given, **fleet}}, {}, Path(), "here")


def diagnosed(run: Run, given: Scenario) -> Diagnosis:
    return diagnose(run, deploy(given).step_times, measured=False)


def assert_all_is_told(found: Diagnosis, run: Run) -> None:
    """Of each request the causes sum to its latency, and what its failed attempts took is what the events say."""
    attributed = found.attributed
    e2e, other, finish = (attributed[name].to_numpy() for name in ("e2e", "other", "finish"))
    assert (abs(other) <= 1e-9 * e2e + 1e-13 * finish).all()
    causes = [name for name in CAUSES if name in attributed.columns]
    assert np.allclose(attributed.select(causes).sum_horizontal().to_numpy(), e2e, rtol=1e-12, atol=1e-12)
    assert all((attributed[name].to_numpy() >= -1e-9).all() for name in causes)
    sent = run.events.filter(pl.col("kind") == "retried").group_by("request_id").agg(sent=pl.col("time").max())
    expected = attributed.join(sent, on="request_id", how="left").select(
        lost=(pl.col("sent") - pl.col("arrival")).fill_null(0.0)
    )
    assert np.allclose(attributed["retry"].to_numpy(), expected["lost"].to_numpy(), atol=1e-12)


@pytest.mark.parametrize(
    "fleet",
    [
        {"failures": CRASHES},
        {"failures": CRASHES | {"failover": "all"}},
        {"failures": CRASHES, "clients": RETRIES},
        {"clients": {"ttft_timeout": 0.3, "timeout": 1.5, "abort_delay": 0.05, **RETRIES}},
        {
            "failures": {"random": [{"kind": "crash", "mtbf": 4.0}], "restart_seconds": 1.0},
            "clients": {"deadline": 8.0, "retries": {"on": ["failed"], "attempts": 9, "budget": {}}},
        },
        {
            "failures": CRASHES,
            "clients": RETRIES,
            "admission": {"policy": "max_outstanding", "fleet": 30},
        },
        {"failures": {"script": [SLOW, {"kind": "crash", "at": 3.0}], "restarts": False}, "clients": RETRIES},
        {
            "replicas": 1,
            "failures": {"random": [{"kind": "crash", "mtbf": 5.0}], "failover": "before_first_token"},
            "cold_start": {"engine_init": 1.0, "graph_capture": 0.5},
            "clients": {"timeout": 10.0, **RETRIES},
        },
        {
            "replicas": 1,
            "autoscaler": {"policy": "schedule", "min": 1, "max": 3, "steps": [{"at": 1.0, "replicas": 3}]},
            "failures": CRASHES,
            "clients": RETRIES,
        },
    ],
)
def test_every_request_has_its_end(fleet: dict[str, Any]) -> None:
    given = scenario(**fleet)
    run = simulate(given)
    counts = run.metrics["requests"]
    assert sum(counts[status] for status in STATUSES) == counts["total"] == 150
    assert counts["unfinished"] == 0
    assert counts["finished"] > 0
    assert_all_is_told(diagnosed(run, given), run)
    again = simulate(given)
    assert_frame_equal(run.requests, again.requests, check_exact=True)
    assert_frame_equal(run.events, again.events, check_exact=True)
    told = run.metrics["reliability"]
    assert told["crashes"] == (run.replicas["why"] == "crashed").sum()
    assert told["attempts"] == 1 + told["retries"] / 150
    assert metric(run.metrics, "reliability.timeouts") == (run.events["kind"] == "timed_out").sum()


@pytest.mark.parametrize("transfer", ["after_prefill", "layerwise"])
@pytest.mark.parametrize("pool", ["prefill", "decode"])
def test_pools_of_different_kind_lose_none(transfer: str, pool: str) -> None:
    crash = {"kind": "crash", "pool": pool}
    failures = {
        "script": [{**crash, "at": 2.0}, {**crash, "at": 4.0}, {**crash, "at": 4.01}],
        "random": [{**crash, "mtbf": 6.0}],
        "restart_seconds": 1.0,
    }
    clients = {"timeout": 4.0, "abort_delay": 0.02, "retries": {"on": ["failed", "timed_out"], "attempts": 4}}
    run = simulate(scenario(disaggregation={**POOLS, "transfer": transfer}, failures=failures, clients=clients))
    counts = run.metrics["requests"]
    assert sum(counts[status] for status in STATUSES) == 150
    assert counts["unfinished"] == 0 and counts["finished"] > 100
    assert run.metrics["reliability"]["crashes"] >= 3


def test_sites_behind_a_mesh_lose_none() -> None:
    sites = {
        "edge": {"rtt": 0.004, "up": 1e6, "profile": "datasheet:l40s"},
        "central": {"rtt": 0.08, "replicas": 2},
    }
    failures = {
        "script": [
            {"kind": "crash", "at": 2.0, "pool": "edge"},
            {"kind": "crash", "at": 3.0, "pool": "central", "replica": 1},
            {"kind": "link", "at": 1.0, "link": "edge up", "factor": 0.01, "duration": 4.0},
        ],
        "random": [{"kind": "slow", "mtbf": 3.0, "factor": 3.0, "duration": {"mean": 1.0, "deviation": 0.5}}],
        "restart_seconds": 1.0,
        "failover": "before_first_token",
    }
    clients = {"timeout": 5.0, "abort_delay": 0.01, "retries": {"on": ["failed", "timed_out"], "attempts": 4}}
    fleet = {"sites": sites, "placement": {"policy": "load_aware", "threshold": 0.02}, "mesh": {}}
    given = make_scenario({**LOAD, "fleet": {**fleet, "failures": failures, "clients": clients}}, {}, Path(), "here")
    run = simulate(given)
    counts = run.metrics["requests"]
    assert sum(counts[status] for status in STATUSES) == 150
    assert counts["unfinished"] == 0 and counts["finished"] > 100
    degraded = run.events.filter(pl.col("kind") == "link_degraded")
    assert degraded.select("time", "amount", "detail").rows() == [(1.0, 1, "edge up"), (5.0, 100, "edge up")]
    assert_all_is_told(diagnose(run, step_times_of(given), measured=False), run)


def test_what_a_crash_cost_is_the_main_cause() -> None:
    """One replica, out of service for longer than all else takes."""
    failures = {"script": [{"kind": "crash", "at": 5.0}], "restart_seconds": 0.1}
    clients = {"retries": {"attempts": 2, "backoff_base": 1000.0, "backoff_max": 1000.0}}
    given = scenario(replicas=1, failures=failures, clients=clients)
    found = diagnosed(simulate(given), given)
    assert found.ranking[0] == "retry"
    assert CAUSES["retry"].label in found.sentence


def test_a_slow_node_is_the_main_cause() -> None:
    given = scenario(replicas=1, failures={"script": [SLOW]}).model_copy(
        update={"trace": make_scenario(LOAD, {"trace.synth.arrivals.rate": 0.2}, Path(), "here").trace}
    )
    run = simulate(given)
    found = diagnosed(run, given)
    assert found.ranking[0] == "slow_node"
    assert_all_is_told(found, run)
    whole = simulate(given.model_copy(update={"fleet": scenario(replicas=1).fleet}))
    # The same requests one by one: eleven twelfths of what each takes.
    slow = found.attributed["slow_node"].to_numpy()
    alone = run.requests.filter(pl.col("e2e") < 12.5 * whole.requests["e2e"])["request_id"].to_numpy()
    assert len(alone) > 50
    assert np.allclose(slow[alone], run.requests["e2e"].to_numpy()[alone] * 11 / 12, rtol=0.1)


def test_a_crashed_replica_starts_as_the_pool_starts_its_replicas() -> None:
    failures = {"script": [{"kind": "crash", "at": 2.0}]}
    run = simulate(scenario(failures=failures, cold_start={"engine_init": 3.0, "graph_capture": 0.5}))
    assert run.replicas["ready"][2] - run.replicas["requested"][2] == pytest.approx(3.5)
    assert run.replicas["requested"][2] == 2.0
    assert run.metrics["reliability"]["down"] == pytest.approx(3.5)


def test_settings_are_spelled_out() -> None:
    resolved = scenario(failures=CRASHES, clients=RETRIES).resolved()["fleet"]
    assert resolved["failures"]["failover"] == "none" and "failover_limit" not in resolved["failures"]
    for settings in (CRASHES, CRASHES | {"failover": "all"}, {"script": CRASHES["script"], "restarts": False}):
        again = scenario(failures=settings).resolved()["fleet"]["failures"]
        assert scenario(failures=again).resolved()["fleet"]["failures"] == again
        assert again.get("failover_limit") == (3 if "failover" in settings else None)
    assert resolved["failures"]["script"][0]["replica"] == "any"
    assert resolved["clients"]["retries"] == {
        "on": ["failed", "shed"],
        "attempts": 5,
        "backoff_base": 0.2,
        "backoff_max": 8.0,
    }


@pytest.mark.parametrize(
    ("fleet", "message"),
    [
        ({"failures": {"script": [{"kind": "crash", "at": 1.0}]}}, "neither failures.restart_seconds nor cold_start"),
        ({"failures": {"random": [{"kind": "crash"}]}}, "fleet.failures.random.mtbf"),
        ({"clients": {}}, "clients neither give up nor try again"),
        ({"clients": {"retries": {"on": ["timed_out"]}}}, "expected ttft_timeout or timeout"),
        ({"clients": {"timeout": 1.0, "ttft_timeout": 2.0}}, "expected no more"),
        ({"clients": {"timeout": -1.0}}, "fleet.clients.timeout"),
        ({"failures": CRASHES | {"restarts": False}}, "restarts is false and restart_seconds is given; expected none"),
        ({"failures": CRASHES | {"failover_limit": 2}}, "failover is none and failover_limit is 2; expected no limit"),
        ({"failures": CRASHES | {"failover": "all", "failover_limit": 0}}, "fleet.failures.failover_limit"),
    ],
)
def test_what_does_not_fit_is_one_line(fleet: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        scenario(**fleet)
    assert message in str(error.value) and "\n" not in str(error.value)
