"""A scenario says how a fleet is scaled and how replicas start; what is left open is said, what is wrong refused."""

from pathlib import Path
from typing import Any

import pytest
from polars.testing import assert_frame_equal

from ground.errors import UserError
from sim.results.folder import Run, read_run, write_run
from sim.results.metric_names import flatten
from sim.study.scenario import make_scenario, scenario_of
from sim.study.simulate import simulate

SCENARIO: dict[str, Any] = {
    "model": "Llama-3.1-8B",
    "profile": "datasheet:h100-sxm-80gb",
    "trace": {
        "synth": {
            "requests": 500,
            "arrivals": {"process": "poisson", "rate": 10.0},
            "lengths": {
                "prompt": {"distribution": "uniform", "low": 300, "high": 600},
                "output": {"distribution": "uniform", "low": 200, "high": 300},
            },
        }
    },
    "engine": {"max_num_seqs": 8},
    "fleet": {"router": "least_outstanding"},
    "slo": {"ttft": 1.0},
    "gpu_hour_price": 2.5,
}
COLD = {
    "node_provision": {"mean": 5.0, "deviation": 1.0},
    "image_bytes": 10_000_000_000,
    "image_bandwidth": 5e9,
    "weights": {"source": "disk", "bandwidth": 1e10},
    "engine_init": 2.0,
    "nodes": {"gpus": 4, "max": 2},
}
POLICIES: list[dict[str, Any]] = [
    {"policy": "hpa", "sync_interval": 5, "scrape_interval": 5},
    {"policy": "keda", "sync_interval": 5, "scrape_interval": 5, "polling_interval": 5},
    {"policy": "planner", "predictor": "constant", "throughput_interval": 15},
    {"policy": "predictive", "sync_interval": 5, "interval": 10, "history": SCENARIO["trace"]},
    {"policy": "schedule", "sync_interval": 5, "steps": [{"at": 10, "replicas": 4}]},
]


def run(fleet: dict[str, Any], **more: Any) -> Run:
    return simulate(make_scenario({**SCENARIO, "fleet": {**SCENARIO["fleet"], **fleet}, **more}, {}, Path(), "s.yaml"))


@pytest.mark.parametrize("policy", POLICIES, ids=lambda one: one["policy"])
def test_each_policy_scales_a_scenario_and_says_what_it_did(policy: dict[str, Any], tmp_path: Path) -> None:
    start = 0 if policy["policy"] == "keda" else 1
    result = run({"replicas": start, "autoscaler": {"max": 6, **policy}, "cold_start": COLD})
    scaling = result.metrics["scaling"]
    assert result.metrics["requests"]["finished"] == 500
    assert scaling["ups"] >= 1
    assert scaling["replicas"]["max"] >= 2
    assert result.metrics["gpu_seconds"] == pytest.approx(scaling["gpu_hours"] * 3600)
    assert result.metrics["cost"]["total"] == pytest.approx(2.5 * scaling["gpu_hours"])
    assert result.metrics["kv"]["blocks"] is None  # how large the fleet's pool is changes with its replicas
    assert scaling["starts"] == sum(result.replicas["ready"] > result.replicas["requested"])  # type: ignore[index,arg-type]
    assert flatten(result.metrics)["scaling.under_provisioned"] == scaling["under_provisioned"]
    write_run(tmp_path / "run", result)
    assert "Ready replicas mean" in (tmp_path / "run" / "report.html").read_text()
    assert_frame_equal(read_run(tmp_path / "run").events, result.events)
    # As resolved it means the same again.
    again = simulate(scenario_of(result.scenario, {}))
    assert again.scenario == result.scenario
    assert_frame_equal(again.requests, result.requests)
    assert_frame_equal(again.events, result.events)


def test_scaling_is_left_out_of_a_fleet_that_is_not_scaled() -> None:
    assert "scaling" not in run({"replicas": 2}).metrics


def test_what_is_left_open_is_said() -> None:
    notes = {one.name: one for one in run({"replicas": 1, "cold_start": {}}).assumptions}
    assert notes["fleet.cold_start.engine_init"].source == "assumed"
    assert "vLLM issue 20264" in notes["fleet.cold_start.engine_init"].note
    assert notes["fleet.cold_start.graph_capture"].unit == "s"
    planned = run({"autoscaler": {"policy": "planner", "max": 2, "predictor": "constant"}}).assumptions
    assert "fleet.autoscaler.capacity" in {one.name for one in planned}


def test_what_crashes_starts_again_in_the_same_parts_and_nobody_is_lost() -> None:
    fleet = {
        "replicas": 2,
        "autoscaler": {"policy": "keda", "max": 5, "sync_interval": 5, "scrape_interval": 5, "polling_interval": 5},
        "cold_start": {**COLD, "sleep": {"replicas": 1, "ready": 1, "wake": 0.5, "share": 0.1}},
        "failures": {"random": [{"kind": "crash", "mtbf": 40.0}]},
    }
    result = run(fleet)
    counts = result.metrics["requests"]
    assert counts["finished"] + counts["failed"] == counts["total"] == 500
    crashed = result.events.filter(result.events["kind"] == "crashed")
    assert len(crashed) > 0
    assert counts["failed"] > 0
    again = result.events.filter(result.events["kind"] == "cold_start")["replica"].unique()
    assert len(again) > len(crashed)


@pytest.mark.parametrize(
    ("fleet", "found"),
    [
        ({"replicas": 0}, "replicas is 0; expected at least 1, or an autoscaler whose min is 0"),
        ({"autoscaler": {"policy": "hpa"}}, "fleet.autoscaler.max: Field required"),
        ({"autoscaler": {"policy": "vpa", "max": 3}}, "'vpa'"),
        ({"autoscaler": {"policy": "hpa", "min": 4, "max": 3}}, "min is 4 and max is 3"),
        (
            {"autoscaler": {"policy": "hpa", "max": 3, "metrics": [{"metric": "cpu", "average_value": 1}]}},
            "unknown metric 'cpu' of type pods",
        ),
        (
            {"autoscaler": {"policy": "hpa", "max": 3, "metrics": [{"value": 1}]}},
            "a metric of type pods has value; expected average_value",
        ),
        ({"autoscaler": {"policy": "keda", "max": 3, "triggers": [{"metric": "x"}]}}, "unknown metric 'x'"),
        ({"autoscaler": {"policy": "planner", "max": 3, "predictor": "oracle"}}, "unknown predictor 'oracle'"),
        ({"autoscaler": {"policy": "predictive", "max": 3, "forecaster": "oracle"}}, "unknown forecaster 'oracle'"),
        (
            {
                "autoscaler": {
                    "policy": "schedule",
                    "max": 3,
                    "steps": [{"at": 5, "replicas": 1}, {"at": 1, "replicas": 2}],
                }
            },
            "steps are at [5.0, 1.0]; expected rising times",
        ),
        ({"cold_start": {"image_bytes": 5}}, "image_bandwidth is not given"),
        (
            {"cold_start": {"weights": {"source": "peer", "bandwidth": 1e9}}},
            "source is peer and fallback_bandwidth is None",
        ),
        ({"replicas": 9, "cold_start": {"nodes": {"gpus": 4, "max": 2}}}, "with room for 8 replicas"),
        (
            {"router": "round_robin", "autoscaler": {"policy": "hpa", "max": 2}, "sites": {"edge": {}}},
            "sites and autoscaler are both given; expected autoscaler of each pool (fleet.sites.edge)",
        ),
    ],
)
def test_what_is_wrong_is_refused_in_one_line(fleet: dict[str, Any], found: str) -> None:
    with pytest.raises(UserError) as caught:
        run(fleet)
    assert found in caught.value.message
    assert "\n" not in caught.value.message


def test_a_planner_knows_no_pipeline() -> None:
    planner = {"policy": "planner", "max": 3, "predictor": "constant"}
    with pytest.raises(UserError, match="pipeline_parallel is 2; expected 1"):
        run({"autoscaler": planner}, engine={"pipeline_parallel": 2})
    with pytest.raises(UserError, match="pipeline_parallel is 2; expected 1"):
        run({"autoscaler": {"policy": "predictive", "max": 3}}, engine={"pipeline_parallel": 2})
    given = {"policy": "predictive", "max": 3, "capacity": 5.0}
    assert run({"autoscaler": given}, engine={"pipeline_parallel": 2}).metrics["requests"]["finished"] == 500


def test_a_node_must_hold_a_replica() -> None:
    with pytest.raises(UserError, match="a replica has 2; expected a node that has room for one"):
        run({"cold_start": {"nodes": {"gpus": 1}}}, engine={"tensor_parallel": 2})
