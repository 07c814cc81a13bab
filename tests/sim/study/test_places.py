"""Scenarios of several pools: a prefill and a decode pool, sites far apart, a mesh before them."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml
from command_line import simctl
from polars.testing import assert_frame_equal

from ground.errors import UserError
from sim.results.diagnosis.diagnosis import diagnose
from sim.results.folder import Run
from sim.results.report import write_report
from sim.results.telemetry.folder import METRICS, TRACES, TelemetrySettings, write_telemetry
from sim.study.pool_scenario import pool_scenario, step_times_of
from sim.study.scenario import Scenario, make_scenario
from sim.study.simulate import load_trace, simulate


def uniform(low: int, high: int) -> dict[str, Any]:
    return {"distribution": "uniform", "low": low, "high": high}


CLASSES = {
    "inspection": {"weight": 6, "deadline": 0.1, "prompt": uniform(250, 300), "output": uniform(2, 2)},
    "logs": {"weight": 3, "deadline": 5.0},
    "forecast": {"weight": 1, "deadline": 60.0, "prompt": uniform(4000, 8000), "output": uniform(200, 400)},
}
SCENARIO: dict[str, Any] = {
    "trace": {
        "synth": {
            "requests": 150,
            "arrivals": {"process": "poisson", "rate": 20},
            "lengths": {"prompt": uniform(300, 2000), "output": uniform(20, 80)},
            "labels": {"classes": CLASSES},
        }
    },
    "model": "Llama-3.1-8B",
    "profile": "datasheet:h100-sxm-80gb",
    "gpu_hour_price": 3.5,
}
HANDOVER: dict[str, Any] = {
    "prefill": {"replicas": 2, "profile": "datasheet:l40s", "gpu_hour_price": 1.0},
    "decode": {"replicas": 1, "engine": {"tensor_parallel": 2, "preset": "vllm-0.19"}},
    "link": {"kind": "ethernet-100g"},
}
NO_CACHE = {"kv_cache": False, "enable_prefix_caching": False}
SITES: dict[str, Any] = {
    "edge": {"rtt": 0.004, "up": 1.25e8, "profile": "datasheet:l40s", "gpu_hour_price": 1.5},
    "central": {"rtt": 0.08, "replicas": 2, "router": "least_outstanding"},
}


def scenario(fleet: dict[str, Any], **overrides: Any) -> Scenario:
    keys = {key.replace("__", "."): value for key, value in overrides.items()}
    return make_scenario({**SCENARIO, "fleet": fleet}, keys, Path(), "s.yaml")


def refusal(fleet: dict[str, Any], **overrides: Any) -> str:
    with pytest.raises(UserError) as caught:
        simulate(scenario(fleet, **overrides))
    assert "\n" not in caught.value.message
    return caught.value.message


def sums_up(run: Run, chosen: Scenario) -> dict[str, float]:
    """Mean seconds by cause, which sum to the latency of every request."""
    found = diagnose(run, step_times_of(chosen), measured=False)
    causes = list(found.all.causes)
    table = found.attributed
    total = sum(table[cause].to_numpy() for cause in causes)
    assert np.abs(total - table["e2e"].to_numpy()).max() < 1e-9
    assert np.abs(table["other"].to_numpy()).max() < 1e-9
    assert min(float(table[cause].to_numpy().min()) for cause in causes) > -1e-9
    assert not found.notes
    return found.all.causes


@pytest.mark.parametrize("transfer", ["after_prefill", "layerwise"])
@pytest.mark.parametrize("first_token", ["decode", "prefill"])
def test_disaggregation_from_scenario_to_metrics(transfer: str, first_token: str) -> None:
    chosen = scenario({"disaggregation": {**HANDOVER, "transfer": transfer, "first_token": first_token}})
    run = simulate(chosen)
    numbers = run.metrics
    assert numbers["requests"]["finished"] == 150 and numbers["gpus"] == 4
    moved = numbers["kv_transfer"]
    trace = load_trace(chosen).requests
    # KV blocks of 16 tokens of 131,072 bytes; nothing is shared, so all of every prompt is moved.
    assert moved["share"] == 1.0 and moved["bytes"] == int((-(-trace["prompt_tokens"] // 16)).sum()) * 16 * 131_072
    assert moved["seconds"]["max"] <= moved["wait"]["max"]
    assert run.replicas is not None
    assert run.replicas["pool"].to_list() == ["prefill", "prefill", "decode"]
    assert run.replicas["gpus"].to_list() == [1, 1, 2] and run.replicas["gpu_hour_price"].to_list() == [1.0, 1.0, 3.5]
    prefilled = run.steps.join(run.replicas.filter(pl.col("pool") == "decode"), on="replica", how="semi")
    assert prefilled["prefill_tokens"].sum() == 0
    names = [assumption.name for assumption in run.assumptions]
    assert "fleet.disaggregation.prefill.engine.kv_blocks" in names or any("prefill" in name for name in names)
    assert "fleet.disaggregation.first_token" in names and "fleet.disaggregation.link.latency" in names
    causes = sums_up(run, chosen)
    assert causes["network"] == pytest.approx(moved["seconds"]["mean"])
    assert_frame_equal(simulate(chosen).requests, run.requests, check_exact=True)


def test_the_scenario_as_resolved_is_the_same_again() -> None:
    for fleet in ({"disaggregation": HANDOVER}, {"sites": SITES, "placement": {"policy": "cost_aware"}, "mesh": {}}):
        run = simulate(scenario(fleet))
        again = simulate(make_scenario(run.scenario, {}, Path(), "again"))
        assert_frame_equal(again.requests, run.requests, check_exact=True)
        assert again.scenario == run.scenario


def test_a_pool_with_another_preset_has_that_one_s_defaults() -> None:
    chosen = scenario({"disaggregation": HANDOVER}, engine__max_num_seqs=8)
    assert chosen.fleet.disaggregation is not None
    decode = pool_scenario(chosen, "fleet.disaggregation.decode", chosen.fleet.disaggregation.decode)
    assert decode.engine.async_scheduling and decode.engine.max_num_seqs == 8 and decode.engine.tensor_parallel == 2
    prefill = pool_scenario(chosen, "fleet.disaggregation.prefill", chosen.fleet.disaggregation.prefill)
    assert prefill.engine == chosen.engine and prefill.profile == "datasheet:l40s"


def test_gpus_are_counted_by_a_pool_s_engine_as_it_is_read() -> None:
    """What is given as text is a number where it is used."""
    given = {key: {**site, "engine": {"tensor_parallel": "2"}} for key, site in SITES.items()}
    chosen = scenario({"sites": given})
    assert chosen.gpus == simulate(chosen).metrics["gpus"] == 6


@pytest.mark.parametrize("policy", ["fixed", "deadline_aware", "cost_aware", "load_aware"])
def test_placement_from_scenario_to_metrics(policy: str) -> None:
    classes = {"inspection": {"request_bytes": 100_000, "site": "edge"}, "logs": {"deadline": 4.0, "site": "central"}}
    chosen = scenario({"sites": SITES, "placement": {"policy": policy, "classes": classes, "threshold": 0.02}})
    run = simulate(chosen)
    requests, numbers = run.requests, run.metrics["placement"]
    assert requests.columns[-3:] == ["slo_class", "deadline", "site"]
    assert requests["status"].to_list() == ["finished"] * 150
    logs = requests.filter(pl.col("slo_class") == "logs")
    assert logs["deadline"].unique().to_list() == [4.0]
    for name, own in numbers["classes"].items():
        rows = requests.filter(pl.col("slo_class") == name)
        assert own["requests"] == len(rows) == sum(own["sites"].values())
        assert own["deadline_hit_rate"] == (rows["e2e"] <= rows["deadline"]).mean()
    assert numbers["deadline_hit_rate"] == (requests["e2e"] <= requests["deadline"]).mean()
    assert sum(own["cost"] for own in numbers["classes"].values()) == pytest.approx(run.metrics["cost"]["total"])
    assert sum(own["cost"] for own in numbers["sites"].values()) == pytest.approx(run.metrics["cost"]["total"])
    if policy == "fixed":
        assert set(requests.filter(pl.col("slo_class") == "inspection")["site"]) == {"edge"}
        assert set(logs["site"]) == {"central"}
    away = requests.filter(pl.col("site") == "central")
    assert away.is_empty() or (away["ttft"] > 0.08).all()
    causes = sums_up(run, chosen)
    rtt = requests["site"].replace_strict({"edge": 0.004, "central": 0.08}, return_dtype=pl.Float64)
    assert causes["network"] >= float(rtt.to_numpy().mean())


def test_the_page_says_how_each_class_fared_and_names_a_site_once(tmp_path: Path) -> None:
    run = simulate(scenario({"sites": SITES, "placement": {"policy": "deadline_aware"}}))
    write_report(run, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "deadlines kept" in page and all(f"<td>{name}</td>" in page for name in CLASSES)
    assert page.count("<td>site edge</td>") == 1 and "<td>pool edge</td>" not in page
    assert page.count("edge: ready") <= 1 and "edge edge" not in page


def test_telemetry_names_the_model_of_each_site(tmp_path: Path) -> None:
    central = {**SITES["central"], "model": "Qwen3-32B"}
    run = simulate(scenario({"sites": {**SITES, "central": central}, "placement": {"policy": "load_aware"}}))
    write_telemetry(tmp_path / "told", run, TelemetrySettings(share=1.0, slowest=0))
    lines = (tmp_path / "told" / METRICS).read_text().splitlines()
    for site, model in (("edge", "Llama-3.1-8B"), ("central", "Qwen3-32B")):
        own = [line for line in lines if f'site="{site}"' in line]
        assert own and all(f'model_name="{model}"' in line for line in own)
    traces = (tmp_path / "told" / TRACES).read_text()
    assert ("Qwen3-32B" in traces) == ("central" in run.requests["site"])


def test_one_site_without_a_network_is_the_plain_fleet() -> None:
    plain = simulate(scenario({"replicas": 2, "router": "least_outstanding"}))
    site = {"here": {"replicas": 2, "router": "least_outstanding"}}
    placed = simulate(scenario({"sites": site}))
    assert_frame_equal(placed.requests.select(plain.requests.columns), plain.requests, check_exact=True)
    assert_frame_equal(placed.steps, plain.steps, check_exact=True)


def test_a_mesh_is_a_hop_for_every_request() -> None:
    chosen = scenario({"mesh": {"latency": {"p90": 0.002, "p99": 0.002}, "max_requests_per_connection": 1}})
    run, plain = simulate(chosen), simulate(scenario({}))
    handshake = 2 * 0.0005 + 0.0024
    hops = run.events.filter(pl.col("kind") == "hop")
    assert len(hops) == 300
    assert hops["seconds"].sum() == pytest.approx(150 * (0.002 + handshake))
    assert run.requests["ttft"].mean() > plain.requests["ttft"].mean()  # type: ignore[operator]
    assert sums_up(run, chosen)["network"] == pytest.approx(0.002 + handshake)
    sources = {one.name: one.source for one in run.assumptions if one.name.startswith("fleet.mesh.")}
    assert sources["fleet.mesh.latency.p90"] == "user" and sources["fleet.mesh.handshake_seconds"] == "measured"


def test_clients_and_crashes_go_with_both() -> None:
    more = {"clients": {"timeout": 3.0, "retries": {"attempts": 3}}}
    failures = {"script": [{"at": 2.0, "kind": "crash"}, {"at": 4.0, "kind": "crash"}], "restart_seconds": 1.0}
    for fleet in ({"disaggregation": HANDOVER}, {"sites": SITES, "mesh": {}}):
        chosen = scenario({**fleet, **more, "failures": failures})
        run = simulate(chosen)
        counts = run.metrics["requests"]
        assert counts["total"] == 150 == sum(value for name, value in counts.items() if name != "total")
        assert counts["unfinished"] == 0 and counts["finished"] > 0
        sums_up(run, chosen)


@pytest.mark.parametrize(
    ("fleet", "said"),
    [
        ({"disaggregation": HANDOVER, "sites": SITES}, "disaggregation and sites are both given"),
        ({"disaggregation": HANDOVER, "replicas": 3}, "expected those of each pool (fleet.disaggregation.prefill"),
        ({"placement": {}}, "placement is given and no sites"),
        ({"sites": SITES, "placement": {"policy": "nearest"}}, "unknown policy 'nearest', expected one of fixed"),
        ({"sites": SITES, "placement": {"classes": {"logs": {"site": "moon"}}}}, "is 'moon'; expected one of edge"),
        ({"sites": SITES, "placement": {"classes": {"x": {}}}}, "no request is of class 'x'; the trace has forecast"),
        ({"sites": {"a": {"engine": {"max_seqs": 1}}}}, "fleet.sites.a.engine: unknown key 'max_seqs'"),
        ({"disaggregation": {**HANDOVER, "link": {}}}, "neither kind nor bandwidth is given"),
        ({"disaggregation": {**HANDOVER, "decode": {"engine": {"block_size": 32}}}}, "expected the same"),
        ({"disaggregation": {**HANDOVER, "decode": {"engine": NO_CACHE}}}, "decode: kv_cache is false"),
        ({"disaggregation": {**HANDOVER, "decode": {"router": "nearest"}}}, "unknown router 'nearest'"),
    ],
)
def test_what_does_not_fit_is_refused(fleet: dict[str, Any], said: str) -> None:
    assert said in refusal(fleet)


def test_cost_aware_needs_prices() -> None:
    data = {key: value for key, value in SCENARIO.items() if key != "gpu_hour_price"}
    fleet = {"sites": SITES, "placement": {"policy": "cost_aware"}}
    with pytest.raises(UserError, match="a site has no gpu_hour_price"):
        simulate(make_scenario({**data, "fleet": fleet}, {}, Path(), "s.yaml"))


def test_the_command_line_runs_and_diagnoses_them(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(yaml.safe_dump({**SCENARIO, "fleet": {"disaggregation": HANDOVER}}))
    simctl("run", str(path), "-o", str(tmp_path / "run"))
    simctl("diagnose", str(tmp_path / "run"))
    assert (tmp_path / "run" / "diagnosis" / "diagnosis.html").is_file()
    path.write_text(yaml.safe_dump({**SCENARIO, "fleet": {"sites": SITES}}))
    simctl("run", str(path), "-o", str(tmp_path / "sites"), "--set", "fleet.sites.edge.rtt=0.02")
    assert "rtt: 0.02" in (tmp_path / "sites" / "scenario.yaml").read_text()
