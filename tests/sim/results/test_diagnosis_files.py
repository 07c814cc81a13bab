"""What `simctl diagnose` writes: flame graphs and a timeline that their viewers open, numbers, requests, and a page."""

import json
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml
from browser import drawn_figures, show
from click.testing import CliRunner, Result
from diagnosis_runs import Planted, simulated, step_latency, trace_of
from engine_workloads import configs, traces
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.engine.config import EngineConfig
from sim.results.diagnosis import timeline as timeline_file
from sim.results.diagnosis.attribution import cause_columns
from sim.results.diagnosis.diagnosis import Diagnosis, diagnose, summary
from sim.results.diagnosis.speedscope import flame_graphs
from sim.results.diagnosis.timeline import phases, timeline
from sim.results.folder import Run
from sim.results.tables import MEMORY
from simctl import main


@st.composite
def diagnosed(draw: st.DrawFn) -> tuple[Run, Diagnosis]:
    config: EngineConfig = draw(configs(block_size=4))
    times = step_latency(config, overhead=draw(st.booleans()))
    run = simulated(
        draw(traces()),
        config,
        times,
        sources=lambda replica, events: [Planted(events, replica, "graph", 0.01)],
        replicas=draw(st.integers(1, 2)),
    )
    if draw(st.booleans()):
        rows = [dict.fromkeys(MEMORY, 5) | {"time": 0.1 * i, "replica": 0} for i in range(5)]
        run.memory = pl.DataFrame(rows, schema=MEMORY)
    return run, diagnose(run, times, measured=False)


# Flame graphs: https://www.speedscope.app/file-format-schema.json, in words.


def check_speedscope(file: dict[str, Any]) -> None:
    assert file["$schema"] == "https://www.speedscope.app/file-format-schema.json"
    assert {"shared", "profiles"} <= file.keys()
    assert file.keys() <= {"$schema", "shared", "profiles", "name", "activeProfileIndex", "exporter"}
    frames = file["shared"]["frames"]
    assert all(isinstance(frame["name"], str) and frame["name"] for frame in frames)
    assert 0 <= file["activeProfileIndex"] < len(file["profiles"])
    for profile in file["profiles"]:
        assert profile.keys() == {"type", "name", "unit", "startValue", "endValue", "samples", "weights"}
        assert profile["type"] == "sampled" and profile["unit"] == "seconds"
        assert profile["endValue"] >= profile["startValue"] == 0
        assert len(profile["samples"]) == len(profile["weights"])
        assert all(weight > 0 for weight in profile["weights"])
        assert sum(profile["weights"]) == pytest.approx(profile["endValue"])
        for stack in profile["samples"]:
            assert stack and all(0 <= frame < len(frames) for frame in stack)


@settings(max_examples=40, deadline=None)
@given(diagnosed())
def test_flame_graphs_are_what_speedscope_reads(case: tuple[Run, Diagnosis]) -> None:
    run, found = case
    file = json.loads(json.dumps(flame_graphs(found), allow_nan=False))
    check_speedscope(file)
    everything, slowest, *replicas = file["profiles"]
    assert everything["endValue"] == pytest.approx(run.requests["e2e"].sum(), rel=1e-9)
    assert slowest["endValue"] == pytest.approx(found.slowest.mean * found.slowest.requests, rel=1e-9)
    # A replica's profile covers the time from its first step to its last.
    spans = run.steps.group_by("replica").agg(pl.col("end").max() - pl.col("start").min()).sort("replica")["end"]
    assert [profile["endValue"] for profile in replicas] == pytest.approx(spans.to_list())


# Timeline: the Trace Event Format, in words.


def check_trace(file: dict[str, Any]) -> None:
    assert file["displayTimeUnit"] in ("ms", "ns")
    open_slices: dict[tuple[Any, ...], list[tuple[str, float]]] = defaultdict(list)
    latest: dict[tuple[Any, ...], float] = defaultdict(float)
    named, used = set(), set()
    tracks: dict[tuple[int, int], list[tuple[float, float]]] = defaultdict(list)
    for entry in file["traceEvents"]:
        assert isinstance(entry["name"], str) and isinstance(entry["pid"], int) and isinstance(entry["tid"], int)
        if entry["ph"] == "M":
            assert entry["name"] in ("process_name", "thread_name") and isinstance(entry["args"]["name"], str)
            if entry["name"] == "process_name":
                named.add(entry["pid"])
            continue
        used.add(entry["pid"])
        assert entry["ts"] >= 0
        match entry["ph"]:
            case "X":
                assert entry["dur"] >= 0
                tracks[entry["pid"], entry["tid"]].append((entry["ts"], entry["dur"]))
            case "i":
                assert entry["s"] in ("g", "p", "t")
            case "C":
                assert entry["args"] and all(isinstance(value, int | float) for value in entry["args"].values())
            case "b" | "e":
                key = entry["cat"], entry["id"], entry["pid"]
                stack = open_slices[key]
                assert latest[key] <= entry["ts"]  # so what is opened within another is closed within it
                latest[key] = entry["ts"]
                if entry["ph"] == "b":
                    assert not stack or stack[-1][1] <= entry["ts"]
                    stack.append((entry["name"], entry["ts"]))
                else:  # it closes what was opened last
                    name, begun = stack.pop()
                    assert name == entry["name"] and begun <= entry["ts"]
            case other:
                raise AssertionError(other)
    assert not any(open_slices.values())
    assert used <= named
    for slices in tracks.values():  # slices of one track may nest, but not cross
        ends = [round(begin + length, 3) for begin, length in slices]
        assert all(end <= begin + 1e-3 for end, (begin, _) in zip(ends, slices[1:], strict=False))


@settings(max_examples=40, deadline=None)
@given(diagnosed())
def test_the_timeline_is_what_perfetto_reads(case: tuple[Run, Diagnosis]) -> None:
    run, found = case
    file = json.loads(json.dumps(timeline(run, found), allow_nan=False))
    check_trace(file)
    slices = [entry for entry in file["traceEvents"] if entry["ph"] == "X"]
    assert found.rows is not None and len(slices) == len(found.rows.rows)
    assert sum(entry["dur"] for entry in slices) == pytest.approx(
        1e6 * (run.steps["end"] - run.steps["start"]).sum(), rel=1e-6, abs=0.01 * len(slices)
    )
    ends = {entry["id"]: entry["ts"] for entry in file["traceEvents"] if entry["ph"] == "e"}
    finish = dict(found.attributed.select("request_id", "finish").iter_rows())
    assert ends == {str(request): pytest.approx(1e6 * time, abs=1e-3) for request, time in finish.items()}
    counters = {entry["name"] for entry in file["traceEvents"] if entry["ph"] == "C"}
    assert counters >= {"requests", "KV blocks"} and ("reserved bytes" in counters) == (run.memory is not None)
    assert sum(entry["ph"] == "i" for entry in file["traceEvents"]) == len(run.events)


def test_a_long_run_is_thinned(monkeypatch: pytest.MonkeyPatch) -> None:
    config = EngineConfig(kv_blocks=200, max_num_seqs=8)
    times = step_latency(config)
    trace = pl.DataFrame(
        {"request_id": range(300), "arrival": np.arange(300) / 50_000, "prompt_tokens": [40] * 300}
        | {"output_tokens": [5 + i % 40 for i in range(300)]}
    )
    run = simulated(trace, config, times)
    found = diagnose(run, times, measured=False)
    for name, most in (("_STEPS", 20), ("_EVENTS", 10), ("_COUNTS", 30), ("_REQUESTS", 25), ("_SLOWEST", 5)):
        monkeypatch.setattr(timeline_file, name, most)
    file = timeline(run, found)
    check_trace(file)
    count = {phase: sum(entry["ph"] == phase for entry in file["traceEvents"]) for phase in "XCb"}
    assert count["X"] <= 21 and count["C"] <= 30
    shown = {entry["id"] for entry in file["traceEvents"] if entry["ph"] == "b"}
    slowest = found.attributed.top_k(5, by=["e2e", "request_id"])["request_id"].to_list()
    assert len(shown) <= 25 and {str(request) for request in slowest} <= shown
    covered = sum(entry["dur"] for entry in file["traceEvents"] if entry["ph"] == "X")
    assert covered == pytest.approx(1e6 * (run.steps["end"].max() - run.steps["start"].min()), rel=1e-6)  # no gaps
    assert file["otherData"]["requests"].startswith(f"{len(shown)} of 300")


def test_the_counters_of_every_replica_are_thinned_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two replicas whose steps end in turn: every second row would be one replica's alone."""
    config = EngineConfig(kv_blocks=200)
    times = step_latency(config)
    run = simulated(trace_of(40, gap=0.01, prompt=40, output=4), config, times, replicas=2)
    rows = [dict.fromkeys(MEMORY, 5) | {"time": 0.1 * (i // 2), "replica": i % 2} for i in range(60)]
    run.memory = pl.DataFrame(rows, schema=MEMORY)
    monkeypatch.setattr(timeline_file, "_COUNTS", 40)
    file = timeline(run, diagnose(run, times, measured=False))
    shown: dict[str, list[int]] = defaultdict(list)
    for entry in file["traceEvents"]:
        if entry["ph"] == "C":
            shown[entry["name"]].append(entry["pid"])
    assert shown.keys() == {"requests", "KV blocks", "reserved bytes", "allocated bytes"}
    for replicas in shown.values():
        count = [replicas.count(replica) for replica in (0, 1)]
        assert 10 <= sum(count) <= 20 and abs(count[0] - count[1]) <= 1


@pytest.mark.parametrize(
    ("first", "away", "expected"),
    [
        (3.0, [], "queueing 0-1, prefill 1-3, decode 3-9"),
        (3.0, [(5.0, 6.0)], "queueing 0-1, prefill 1-3, decode 3-5, preempted 5-6, decode 6-9"),
        (4.0, [(2.0, 3.0)], "queueing 0-1, prefill 1-2, preempted 2-3, prefill 3-4, decode 4-9"),
        (4.0, [(2.0, 5.0)], "queueing 0-1, prefill 1-2, preempted 2-5, decode 5-9"),
        (9.0, [(8.0, 9.0)], "queueing 0-1, prefill 1-8, preempted 8-9"),
    ],
)
def test_phases(first: float, away: list[tuple[float, float]], expected: str) -> None:
    request = {"arrival": 0.0, "first_scheduled": 1.0, "first_token": first, "finish": 9.0}
    assert ", ".join(f"{name} {begin:g}-{end:g}" for name, begin, end in phases(request, away)) == expected


# The command.


def simctl(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(main, list(arguments))
    assert result.exit_code == code, (result.output, result.exception)
    return result


@pytest.fixture(scope="module")
def run_of_all(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copied before it is diagnosed."""
    scenario = {
        "trace": {
            "synth": {
                "requests": 400,
                "arrivals": {"process": "poisson", "rate": 40.0},
                "lengths": {
                    "prompt": {"distribution": "lognormal", "median": 300, "sigma": 0.6, "low": 16, "high": 1500},
                    "output": {"distribution": "lognormal", "median": 60, "sigma": 0.5, "low": 2, "high": 200},
                },
            }
        },
        "model": "Llama-3.1-8B",
        "profile": "datasheet:h100-sxm-80gb",
        "engine": {"kv_blocks": 400},
    }
    folder = tmp_path_factory.mktemp("simulated")
    (folder / "s.yaml").write_text(yaml.safe_dump(scenario))
    simctl("run", str(folder / "s.yaml"), "-o", str(folder / "run"))
    return folder / "run"


@pytest.fixture
def a_run(run_of_all: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(run_of_all, tmp_path / "run"))


def test_diagnose_writes_and_says_everything(a_run: Path, tmp_path: Path) -> None:
    shown = simctl("diagnose", "run").stdout
    folder = a_run / "diagnosis"
    assert sorted(path.name for path in folder.iterdir()) == [
        "diagnosis.html",
        "diagnosis.json",
        "flame.speedscope.json",
        "requests.parquet",
        "timeline.json",
    ]
    numbers = json.loads((folder / "diagnosis.json").read_text())
    requests = pl.read_parquet(folder / "requests.parquet")
    assert sum(cause["seconds"] for cause in numbers["causes"]) == pytest.approx(requests["e2e"].sum(), rel=1e-9)
    for cause in numbers["causes"]:
        assert cause["seconds"] == pytest.approx(requests[cause["cause"]].sum(), rel=1e-6, abs=1e-9)
    assert numbers["main_cause"] == numbers["causes"][0]["cause"] and numbers["kind"] == "simulated"
    assert numbers["explained"] is None and numbers["notes"] == []
    for words in ("400 finished requests", "first third against last third", "What usually helps", "diagnosis.html"):
        assert words in shown
    check_speedscope(json.loads((folder / "flame.speedscope.json").read_text()))
    check_trace(json.loads((folder / "timeline.json").read_text()))
    document, console = show(folder / "diagnosis.html", tmp_path)
    assert console == []
    assert drawn_figures(document) == (3, 3)
    assert numbers["sentence"].split(":")[0] in document


def test_help_is_quick() -> None:
    code = (
        "import sys; from simctl import main; main(['diagnose', '--help'], standalone_mode=False)\n"
        "heavy = {'torch', 'polars', 'plotly', 'numpy', 'simpy'} & set(sys.modules)\nassert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=60)


def test_an_existing_diagnosis_is_kept(a_run: Path) -> None:
    simctl("diagnose", "run")
    refused = simctl("diagnose", "run", code=2)
    assert "exists and is not empty" in refused.stderr and refused.stderr.count("\n") == 1
    before = {path.name: path.read_bytes() for path in (a_run / "diagnosis").iterdir()}
    simctl("diagnose", "run", "--force")
    assert {path.name: path.read_bytes() for path in (a_run / "diagnosis").iterdir()} == before
    simctl("diagnose", "run", "-o", "elsewhere")
    assert (Path("elsewhere") / "diagnosis.json").read_bytes() == before["diagnosis.json"]


def test_another_profile_is_scaled(a_run: Path) -> None:
    simctl("diagnose", "run", "--profile", "datasheet:a100-sxm-80gb")
    numbers = json.loads((a_run / "diagnosis" / "diagnosis.json").read_text())
    assert numbers["explained"] > 1.2  # an A100 takes longer
    requests = pl.read_parquet(a_run / "diagnosis" / "requests.parquet")
    parts = np.sum([requests[name].to_numpy() for name in cause_columns(requests)], axis=0)
    assert parts == pytest.approx(requests["e2e"].to_numpy(), rel=1e-9)


def test_a_measured_run_needs_no_profile_without_steps(a_run: Path) -> None:
    (a_run / "measurement.json").write_text("{}")
    requests = pl.read_parquet(a_run / "requests.parquet")
    requests.with_columns(first_scheduled=pl.lit(None, pl.Float64)).write_parquet(a_run / "requests.parquet")
    steps = pl.read_parquet(a_run / "steps.parquet")
    steps.clear().write_parquet(a_run / "steps.parquet")
    scenario = yaml.safe_load((a_run / "scenario.yaml").read_text())
    (a_run / "scenario.yaml").write_text(yaml.safe_dump(scenario | {"profile": "nowhere"}))
    shown = simctl("diagnose", "run").stdout
    assert "measured run" in shown and "before the first token" in shown and "no table of its engine's steps" in shown
    file = json.loads((a_run / "diagnosis" / "timeline.json").read_text())
    check_trace(file)


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    refused = simctl("diagnose", str(tmp_path), code=2)
    assert refused.stderr.startswith("simctl: ") and "requests.parquet: is missing" in refused.stderr


def test_one_request_has_no_trend() -> None:
    config = EngineConfig(kv_blocks=200)
    times = step_latency(config)
    trace = pl.DataFrame({"request_id": [0], "arrival": [0.0], "prompt_tokens": [9], "output_tokens": [1]})
    one = summary(diagnose(simulated(trace, config, times), times, measured=False))
    assert json.loads(json.dumps(one, allow_nan=False))["trend"] is None
