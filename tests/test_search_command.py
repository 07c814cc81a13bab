"""`simctl search` and `simctl capacity` as a user calls them."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from command_line import refused, simctl, write_scenario

from sim.study.search.explore import expected_runs
from sim.study.search.study import load_search

PATIENCE = 120.0  # seconds that something certain to happen may take on a busy machine


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_scenario(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_study(folder: Path, **changes: Any) -> None:
    study = {
        "scenario": "s.yaml",
        "objectives": ["min ttft.p99"],
        "parameters": {"engine.max_num_seqs": {"low": 1, "high": 9, "integer": True}},
        "points": 4,
        "batch": 2,
        "seeds": 1,
        "winners": 1,
    }
    (folder / "study.yaml").write_text(yaml.safe_dump(study | changes))


def test_a_killed_search_goes_on_to_the_same(here: Path) -> None:
    write_study(here)
    process = subprocess.Popen(
        [sys.executable, "-m", "simctl", "search", "study.yaml", "-o", "out", "--workers", "1"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    log, deadline = here / "out" / "runs.jsonl", time.monotonic() + PATIENCE
    while not (log.is_file() and log.read_bytes().count(b"\n") >= 2):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.005)
    process.kill()
    process.wait(PATIENCE)
    kept = log.read_bytes()
    kept = kept[: kept.rfind(b"\n") + 1]
    result = simctl("search", "study.yaml", "-o", "out", "--workers", "1")
    assert "winner 1: point" in result.stdout and "out/report.html" in result.stdout
    simctl("search", "study.yaml", "-o", "whole", "--workers", "1")
    assert log.read_bytes().startswith(kept)
    for name in ("runs.jsonl", "search.yaml", "search.json", "points.parquet", "winners.json", "report.html"):
        assert (here / "out" / name).read_bytes() == (here / "whole" / name).read_bytes()
    assert (here / "out" / "optuna.journal").is_file()


def test_search_mistakes_are_one_line(here: Path) -> None:
    write_study(here, constraints=["ttft.p99 <= now"])
    assert "study.yaml: constraints: constraint 'ttft.p99 <= now': 'now' is no number" in refused(
        "search", "study.yaml", "-o", "out"
    )
    write_study(here)
    assert "--address is given and --engine is local" in refused("search", "study.yaml", "-o", "out", "--address", "x")
    assert "nosuch.yaml: cannot be read" in refused("search", "nosuch.yaml", "-o", "out")


def test_capacity_of_a_scenario(here: Path) -> None:
    result = simctl(
        "capacity", "s.yaml", "--seeds", "1", "--tolerance", "0.5", "--set", "engine.max_num_seqs=1",
        "--set", "slo.ttft=0.1", "--vary", "fleet.replicas=[1, 2]", "--workers", "1",
    )  # fmt: skip
    assert "fleet.replicas = 2" in result.stdout and "per GPU" in result.stdout
    found = json.loads((here / "runs" / "s-capacity" / "capacity.json").read_text())
    one, two = (answer["rate"] for answer in found["answers"])
    assert 1.2 * one < two < 3 * one
    counted = simctl(
        "capacity", "s.yaml", "--rate", str(1.2 * one), "--seeds", "1", "--set", "engine.max_num_seqs=1",
        "--set", "slo.ttft=0.1", "-o", "count", "--workers", "1",
    )  # fmt: skip
    assert "replicas" in counted.stdout
    assert json.loads((here / "count" / "capacity.json").read_text())["answers"][0]["replicas"] >= 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--vary", "fleet.replicas=2"], "--vary fleet.replicas=2: found 2, expected a list of values"),
        (["--vary", "fleet.clones=[2]"], "fleet.clones: no such key in a scenario"),
        (["--set", "slo"], "--set slo: expected key=value"),
        (["--set", "slo.ttft=-1"], "s.yaml: slo.ttft"),
        (["--engine", "ray", "--workers", "2"], "--workers is given and --engine is ray"),
    ],
)
def test_capacity_mistakes_are_one_line(here: Path, arguments: list[str], said: str) -> None:
    assert said in refused("capacity", "s.yaml", "-o", "out", *arguments)


def test_the_example_is_a_search() -> None:
    made = load_search(Path(__file__).parent.parent / "examples" / "policies" / "search.yaml")
    assert made.space.size(10_000) is None and expected_runs(made) > 3 * made.points
    for batching in ("continuous", "static"):
        made.scenario_of({"engine.batching.policy": batching})
