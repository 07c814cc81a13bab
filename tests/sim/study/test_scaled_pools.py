"""Each pool of a fleet that has several may be scaled: by its own policy, with starts of its own."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from ground.errors import UserError
from sim.results.diagnosis.diagnosis import diagnose
from sim.results.folder import Run, write_run
from sim.results.telemetry.openmetrics import write_openmetrics
from sim.study.pool_scenario import step_times_of
from sim.study.scenario import Scenario, load_scenario, make_scenario
from sim.study.simulate import simulate


def uniform(low: int, high: int) -> dict[str, Any]:
    return {"distribution": "uniform", "low": low, "high": high}


SCENARIO: dict[str, Any] = {
    "trace": {
        "synth": {
            "requests": 200,
            "arrivals": {"process": "poisson", "rate": 20},
            "lengths": {"prompt": uniform(1000, 6000), "output": uniform(60, 160)},
        }
    },
    "model": "Llama-3.1-8B",
    "profile": "datasheet:h100-sxm-80gb",
    "engine": {"max_num_seqs": 8},
    "gpu_hour_price": 3.5,
}
COLD = {"engine_init": 0.5, "graph_capture": 0.25, "weights": {"source": "disk", "bandwidth": 4e10}}
QUICK = {"max": 4, "sync_interval": 1, "scrape_interval": 1}


def disaggregated(prefill: dict[str, Any], decode: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"disaggregation": {"prefill": prefill, "decode": decode, "link": {"kind": "ethernet-100g"}, **more}}


def sites(edge: dict[str, Any], central: dict[str, Any]) -> dict[str, Any]:
    placement = {"policy": "load_aware", "threshold": 0.5}
    return {"sites": {"edge": {"rtt": 0.004, **edge}, "central": {"rtt": 0.08, **central}}, "placement": placement}


def scenario(fleet: dict[str, Any]) -> Scenario:
    return make_scenario({**SCENARIO, "fleet": fleet}, {}, Path(), "s.yaml")


def fixed(replicas: int) -> dict[str, Any]:
    return {"policy": "schedule", "max": 9, "sync_interval": 0.5, "steps": [{"at": 0, "replicas": replicas}]}


@pytest.mark.parametrize("make", [disaggregated, sites])
def test_a_policy_that_changes_nothing_changes_nothing(make: Any) -> None:
    plain = simulate(scenario(make({"replicas": 2}, {"replicas": 1})))
    held = simulate(scenario(make({"replicas": 2, "autoscaler": fixed(2)}, {"replicas": 1, "autoscaler": fixed(1)})))
    assert_frame_equal(held.requests, plain.requests, check_exact=True)
    assert_frame_equal(held.steps, plain.steps, check_exact=True)
    assert held.metrics["scaling"]["ups"] == held.metrics["scaling"]["downs"] == 0


@pytest.mark.parametrize("make", [disaggregated, sites])
def test_each_pool_follows_its_own_schedule(make: Any) -> None:
    def steps(*counts: int) -> dict[str, Any]:
        return {**fixed(1), "steps": [{"at": 4 * place, "replicas": count} for place, count in enumerate(counts)]}

    run = simulate(scenario(make({"autoscaler": steps(1, 3, 2)}, {"autoscaler": steps(1, 2), "cold_start": COLD})))
    first, second = ("prefill", "decode") if make is disaggregated else ("edge", "central")
    assert run.metrics["requests"]["finished"] == 200
    asked = run.replicas.group_by("pool").agg(pl.col("requested").sort())  # type: ignore[union-attr]
    assert dict(asked.iter_rows()) == {first: [0.0, 4.0, 4.0], second: [0.0, 4.0]}
    scaling = run.metrics["scaling"]
    assert (scaling["ups"], scaling["downs"], scaling["starts"]) == (2, 1, 1)
    assert scaling["start"] > 0.75
    scaled = run.events.filter(pl.col("kind") == "scaled")
    assert scaled["detail"].to_list() == [
        f"{first}: schedule: at 4 s", f"{second}: schedule: at 4 s", f"{first}: schedule: at 8 s",
    ]  # fmt: skip
    assert run.metrics["gpus"] is None and run.metrics["kv"]["blocks"] is None
    assert run.metrics["gpu_seconds"] == pytest.approx(3600 * scaling["gpu_hours"])


POLICIES: list[dict[str, Any]] = [
    {"policy": "hpa", **QUICK},
    {"policy": "keda", "polling_interval": 1, **QUICK},
    {"policy": "planner", "predictor": "constant", "throughput_interval": 3, **QUICK},
    {"policy": "predictive", "forecaster": "naive", "interval": 2, "capacity": 3.0, **QUICK},
]


def whole(run: Run, chosen: Scenario) -> None:
    """Every second of every request has its cause."""
    found = diagnose(run, step_times_of(chosen), measured=False)
    total = sum(found.attributed[cause].to_numpy() for cause in found.all.causes)
    assert np.abs(total - found.attributed["e2e"].to_numpy()).max() < 1e-9


@pytest.mark.parametrize("policy", POLICIES, ids=lambda one: one["policy"])
@pytest.mark.parametrize("make", [disaggregated, sites])
def test_every_policy_scales_pools_and_nobody_is_lost(make: Any, policy: dict[str, Any], tmp_path: Path) -> None:
    pool = {"autoscaler": policy, "cold_start": {**COLD, "sleep": {"replicas": 1, "wake": 0.1, "share": 0.2}}}
    failures = {"script": [{"kind": "crash", "at": 3.0}, {"kind": "crash", "at": 6.0}]}
    chosen = scenario({**make(pool, pool), "failures": failures, "mesh": {}})
    run = simulate(chosen)
    counts = run.metrics["requests"]
    assert counts["finished"] + counts["failed"] == 200
    assert run.metrics["scaling"]["starts"] >= 2 and run.metrics["scaling"]["ups"] >= 1
    assert (run.metrics["scaling"]["asleep_cost"] is None) is False
    whole(run, chosen)
    write_run(tmp_path / "run", run)
    again = simulate(load_scenario(tmp_path / "run" / "scenario.yaml"))
    assert again.scenario == run.scenario
    assert_frame_equal(again.requests, run.requests, check_exact=True)
    assert_frame_equal(again.events, run.events, check_exact=True)


@pytest.mark.parametrize("make", [disaggregated, sites])
def test_telemetry_tells_the_kv_use_of_each_replica_by_its_own_pool(make: Any, tmp_path: Path) -> None:
    own = [{"autoscaler": fixed(2), "engine": {"kv_blocks": blocks}} for blocks in (2000, 4000)]
    run = simulate(scenario(make(*own)))
    first = "prefill" if make is disaggregated else "edge"
    assert run.replicas is not None
    told = run.replicas.select("pool", "kv_blocks").unique()
    assert {pool == first: blocks for pool, blocks in told.iter_rows()} == {True: 2000, False: 4000}
    path = tmp_path / "metrics.txt"
    written = write_openmetrics(run, path, interval=0.25, epoch=1_767_225_600)
    assert "kv_cache_usage_perc" not in written.left_out
    shown = [line.split(" ") for line in path.read_text().splitlines() if line.startswith("vllm:kv_cache_usage_perc{")]
    highest = run.steps.join(run.replicas, on="replica").select((pl.col("kv_blocks") / pl.col("kv_blocks_right")).max())
    assert 0.0 < max(float(value) for _, value, _ in shown) <= highest.item()


def test_a_planner_has_the_role_of_its_pool() -> None:
    planner = {"policy": "planner", "max": 2, "predictor": "constant"}
    found = scenario(disaggregated({"autoscaler": planner}, {"autoscaler": planner})).resolved()["fleet"]
    assert found["disaggregation"]["prefill"]["autoscaler"]["role"] == "prefill"
    assert found["disaggregation"]["decode"]["autoscaler"]["role"] == "decode"
    assert "role" not in planner


def test_a_pool_without_routing_has_the_fleet_s_and_its_router_s_defaults() -> None:
    pools = disaggregated({"router": "prefix_aware"}, {"router": "kv_cost", "routing": {"load_delay": 0.5}})
    resolved = scenario({**pools, "routing": {"load_delay": 0.1}}).resolved()["fleet"]["disaggregation"]
    assert resolved["prefill"]["routing"]["load_delay"] == 0.1
    assert resolved["prefill"]["routing"]["prefix_aware"]["match_threshold"] == 0.3
    assert resolved["decode"]["routing"]["load_delay"] == 0.5
    assert resolved["decode"]["routing"]["kv_cost"]["overlap_credit"] == 1.0
    of_sites = scenario(sites({"router": "session_affinity"}, {})).resolved()["fleet"]["sites"]
    assert of_sites["edge"]["routing"]["session_affinity"]["balance_factor"] == 1.25
    assert of_sites["central"]["routing"] == {"load_delay": 0.0, "scrape_interval": 0.0}


def test_the_history_of_a_pool_s_policy_is_found_beside_the_scenario(tmp_path: Path) -> None:
    scaler = {"policy": "predictive", "max": 2, "capacity": 1.0, "history": {"file": "before.csv"}}
    for fleet in (disaggregated({"autoscaler": scaler}, {}), sites({"autoscaler": scaler}, {})):
        found = make_scenario({**SCENARIO, "fleet": fleet}, {}, tmp_path, "s.yaml").resolved()["fleet"]
        pool = found["disaggregation"]["prefill"] if "disaggregation" in found else found["sites"]["edge"]
        assert pool["autoscaler"]["history"]["file"] == str(tmp_path / "before.csv")


@pytest.mark.parametrize(
    ("fleet", "said"),
    [
        (
            {**disaggregated({}, {}), "autoscaler": fixed(1)},
            "expected autoscaler of each pool (fleet.disaggregation.prefill, fleet.disaggregation.decode)",
        ),
        (
            disaggregated({"autoscaler": {"policy": "planner", "max": 2, "role": "both"}}, {}),
            "prefill.autoscaler.role is both; expected prefill",
        ),
        (
            sites({"autoscaler": {"policy": "planner", "max": 2, "role": "decode"}}, {}),
            "fleet.sites.edge.autoscaler.role is decode; expected both",
        ),
        (
            {"autoscaler": {"policy": "planner", "max": 2, "role": "prefill"}},
            "fleet.autoscaler.role is prefill; expected both",
        ),
        (
            disaggregated({}, {"autoscaler": {"policy": "predictive", "max": 2}}),
            "decode.autoscaler.policy is predictive and capacity is not given",
        ),
        (
            sites({"cold_start": {"nodes": {"gpus": 1}}, "engine": {"tensor_parallel": 2}}, {}),
            "fleet.sites.edge.cold_start.nodes.gpus is 1 and a replica has 2",
        ),
        ({"sites": {"eu.west": {}}}, "a site is named 'eu.west'; expected a name without dots"),
        (
            {
                **disaggregated({}, {}),
                "failures": {"script": [{"kind": "crash", "at": 1}], "restarts": False, "failover": "all"},
            },
            "disaggregation and failures.failover all are both given",
        ),
        (
            {**sites({"cold_start": {}}, {}), "failures": {"script": [{"kind": "crash", "at": 1}]}},
            "neither failures.restart_seconds nor cold_start (of each pool) is given",
        ),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(fleet: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as caught:
        simulate(scenario(fleet))
    assert said in caught.value.message and "\n" not in caught.value.message
