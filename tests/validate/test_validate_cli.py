"""`simctl validate` from the command line, with a model of a few thousand weights and a trace of 60 ms."""

import json
import re
import shutil
import sys

import polars as pl
import pytest
import torch
from click.testing import CliRunner
from tiny_model_config import CONFIG

from sim.results.folder import read_run
from sim.results.tables import REQUESTS, STEPS
from sim.study.study import load_study
from sim.study.sweep import sweep
from simctl import main
from validate import measure
from validate.measure import is_measured, read_measurement

REQUESTS_IN_TRACE = 6
SCENARIO = """\
trace:
  synth:
    requests: 6
    arrivals: {process: constant, rate: 100}
    lengths: {prompt: {distribution: constant, value: 20}, output: {distribution: constant, value: 4}}
model: config.json
profile: datasheet:h100-sxm-80gb
engine: {preset: reference, kv_blocks: 32, max_num_seqs: 4, max_num_batched_tokens: 64}
slo: {ttft: 60}
"""


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A finished sweep of two points; tests that write work on a copy."""
    folder = tmp_path_factory.mktemp("swept")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "scenario.yaml").write_text(SCENARIO)
    scenario = "\n".join("  " + line for line in SCENARIO.splitlines())
    study = f"scenario:\n{scenario}\nparameters: {{engine.max_num_seqs: [1, 4]}}\nwinners: 1\n"
    (folder / "study.yaml").write_text(study)
    sweep(load_study(folder / "study.yaml"), folder / "sweep")
    return folder


@pytest.fixture
def work(swept, tmp_path):
    shutil.copytree(swept, tmp_path / "work")
    return tmp_path / "work"


def run(*arguments, code=0):
    result = CliRunner().invoke(main, ["validate", *map(str, arguments)])
    if code == 0 and result.exception:
        raise result.exception
    assert result.exit_code == code, result.output
    return result.output


def refused(*arguments):
    """The one line that a user's mistake gives."""
    output = run(*arguments, code=2)
    *before, line = output.splitlines()
    assert all(other.startswith("replaying") for other in before), "nothing else but the progress bar"
    assert line.startswith("simctl: ")
    return line


def test_winners_measures_every_policy_and_compares(work):
    output = run("winners", work / "sweep", "--repeats", 2, "--threads", 1)
    assert "Predicted against measured" in output
    folder = work / "sweep" / "validation"
    validation = json.loads((folder / "validation.json").read_text())
    assert [policy["name"] for policy in validation["policies"]] == ["winner-1", "baseline"]
    for policy in validation["policies"]:
        assert policy["repeats"] == 2
        assert policy["unmatched"] == 0
        assert policy["ape"]["e2e"]["requests"] == REQUESTS_IN_TRACE
        ttft = policy["metrics"]["ttft.mean"]
        assert ttft["difference"] == pytest.approx(ttft["predicted"] - ttft["measured"])
        assert ttft["error"] == pytest.approx(ttft["difference"] / ttft["measured"])
    assert validation["engine"]["threads"] == 1
    assert validation["engine"]["weights"] == "random"
    assert validation["lateness"]["requests"] > 0
    assert set(validation["ranking"]) >= {"ttft.mean", "e2e.p99"}
    assert "Kendall" in (folder / "report.html").read_text()
    for name in ("winner-1", "baseline"):
        measured = read_run(folder / "measured" / name / "repeat-2")
        predicted = read_run(work / "sweep" / "winners" / name)
        assert measured.scenario == predicted.scenario
        assert measured.requests["status"].to_list() == ["finished"] * REQUESTS_IN_TRACE
        assert measured.steps["prefill_tokens"].sum() == 20 * REQUESTS_IN_TRACE
        assert {name: measured.requests.schema[name] for name in REQUESTS} == REQUESTS
        assert {name: measured.steps.schema[name] for name in STEPS} == STEPS
        assert measured.metrics["kv"]["blocks"] == 32


def test_an_interrupted_validation_goes_on_where_it_was(work, monkeypatch):
    original = measure.measure_reference
    calls = []

    def interrupted(scenario, machine, folder, **options):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(folder)
        original(scenario, machine, folder, **options)

    monkeypatch.setattr("validate.commands.measure_reference", interrupted)
    assert "interrupted: 2 of 4 replays are kept; the same command goes on" in run(
        "winners", work / "sweep", "--repeats", 2, code=130
    )
    assert [folder.parts[-2:] for folder in calls] == [("winner-1", "repeat-1"), ("baseline", "repeat-1")]
    kept = {folder: (folder / "requests.parquet").read_bytes() for folder in calls}
    assert not (work / "sweep" / "validation" / "validation.json").exists()

    resumed = []
    monkeypatch.setattr(
        "validate.commands.measure_reference",
        lambda scenario, machine, folder, **options: (
            resumed.append(folder) or original(scenario, machine, folder, **options)
        ),
    )
    run("winners", work / "sweep", "--repeats", 2)
    assert [folder.parts[-2:] for folder in resumed] == [("winner-1", "repeat-2"), ("baseline", "repeat-2")]
    assert kept == {folder: (folder / "requests.parquet").read_bytes() for folder in kept}
    assert (work / "sweep" / "validation" / "validation.json").is_file()


def test_a_replay_cut_short_is_measured_again(work):
    run("winners", work / "sweep", "--repeats", 1)
    cut = work / "sweep" / "validation" / "measured" / "baseline" / "repeat-1"
    (cut / "measurement.json").unlink()
    run("winners", work / "sweep", "--repeats", 1)
    assert is_measured(cut)


def test_top_leaves_the_baseline_in(work):
    (work / "sweep" / "winners.json").write_text(
        json.dumps(
            [
                {"name": name, "point": 0, "parameters": {}, "run": f"winners/{run}"}
                for name, run in (("winner-1", "winner-1"), ("winner-2", "winner-1"), ("baseline", "baseline"))
            ]
        )
    )
    run("winners", work / "sweep", "--repeats", 1, "--top", 1, "-o", work / "out")
    validation = json.loads((work / "out" / "validation.json").read_text())
    assert [policy["name"] for policy in validation["policies"]] == ["winner-1", "baseline"]


def test_replays_of_other_settings_are_not_mixed(work):
    run("winners", work / "sweep", "--repeats", 1, "--threads", 1)
    assert "was measured with threads 1, now it is 2" in refused("winners", work / "sweep", "--threads", 2)
    for name in ("winner-1", "baseline"):
        scenario = work / "sweep" / "winners" / name / "scenario.yaml"
        scenario.write_text(scenario.read_text().replace("seed: 0", "seed: 1"))
    assert "another scenario" in refused("winners", work / "sweep", "--threads", 1)


def test_what_is_no_sweep_is_named(work):
    assert "no such folder" in refused("winners", work / "nowhere")
    assert "winners.json: is missing" in refused("winners", work)
    (work / "sweep" / "winners.json").write_text("[]")
    assert "is empty" in refused("winners", work / "sweep")
    (work / "sweep" / "winners.json").write_text('[{"name": "a"}]')
    assert "KeyError" in refused("winners", work / "sweep")


def test_a_missing_extra_is_one_line(work, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert "pip install 'simctl[torch]'" in refused("winners", work / "sweep")
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    arguments = ("replay", work / "scenario.yaml", "--engine", "openai", "--url", "http://127.0.0.1:1")
    assert "pip install 'simctl[client]'" in refused(*arguments, "-o", work / "out")
    assert not (work / "out").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_missing_device_is_one_line(work):
    assert "torch finds no CUDA device" in refused("winners", work / "sweep", "--device", "cuda")


def test_the_reference_engine_is_one_engine(work):
    arguments = ("replay", work / "scenario.yaml", "--engine", "reference", "-o", work / "out")
    assert "fleet.replicas is 2" in refused(*arguments, "--set", "fleet.replicas=2")
    too_long = "trace.synth.lengths.prompt.value=300"
    assert "config takes 256" not in refused(*arguments, "--set", "engine.kv_blocks=4", "--set", too_long)
    assert "takes 256" in refused(*arguments, "--set", "engine.kv_blocks=64", "--set", too_long)
    assert not (work / "out").exists()


def test_replay_on_the_reference_engine(work):
    output = run("replay", work / "scenario.yaml", "--engine", "reference", "-o", work / "out")
    assert re.search(r"report\.html \(arrivals late by [0-9.e-]+ ms at p99\)", output)
    measured = read_run(work / "out")
    assert measured.metrics["requests"]["finished"] == REQUESTS_IN_TRACE
    assert "<title>out</title>" in (work / "out" / "report.html").read_text()
    assert "exists" in refused("replay", work / "scenario.yaml", "--engine", "reference", "-o", work / "out")


def test_replay_against_a_server(work, fake_server):
    fake_server.behave(gap=0.001, cached=16)
    arguments = ("replay", work / "scenario.yaml", "--engine", "openai", "--url", fake_server.url)
    run(*arguments, "-o", work / "out")
    assert len(fake_server.received) == REQUESTS_IN_TRACE
    assert all(max(body["prompt"]) < CONFIG["vocab_size"] for body in fake_server.received)
    measured = read_run(work / "out")
    assert measured.metrics["requests"]["finished"] == REQUESTS_IN_TRACE
    assert measured.metrics["queue"]["mean"] is None
    assert measured.metrics["gpus"] is None
    assert measured.steps.is_empty()
    engine, lateness, failures = read_measurement(work / "out")
    assert engine["model"] == "tiny"
    assert lateness.requests == REQUESTS_IN_TRACE
    assert not failures

    fake_server.behave(when_asked=4, disconnect_after=2)
    assert "none of 6 requests finished" in refused(*arguments, "-o", work / "failed")
    assert not (work / "failed").exists()


def test_failures_are_told(work, fake_server):
    fake_server.behave(when_asked=4, status=500)
    (work / "trace.csv").write_text("arrival,prompt_tokens,output_tokens\n0,8,4\n0,8,5\n")
    columns = "{arrival: arrival, prompt_tokens: prompt_tokens, output_tokens: output_tokens}"
    trace = f"trace: {{file: trace.csv, columns: {columns}}}\nmodel"
    scenario = re.sub(r"trace:.*?\nmodel", trace, SCENARIO, flags=re.S)
    (work / "scenario.yaml").write_text(scenario)
    output = run("replay", work / "scenario.yaml", "--engine", "openai", "--url", fake_server.url, "-o", work / "out")
    assert "1 requests failed: HTTP 500" in output
    assert read_run(work / "out").requests["status"].to_list() == ["failed", "finished"]


def test_replay_asks_for_what_belongs_together(work):
    arguments = ("replay", work / "scenario.yaml", "-o", work / "out")
    assert "--url is missing" in refused(*arguments, "--engine", "openai")
    assert "belongs to --engine openai" in refused(*arguments, "--engine", "reference", "--url", "http://x")


def test_compare_two_folders(work):
    run("replay", work / "scenario.yaml", "--engine", "reference", "-o", work / "out")
    run("compare", work / "sweep" / "winners" / "baseline", work / "out", work / "out", "-o", work / "compared")
    validation = json.loads((work / "compared" / "validation.json").read_text())
    assert validation["policies"][0]["repeats"] == 2
    assert set(validation["policies"][0]["spread"].values()) == {0.0}
    assert validation["ranking"] == {}
    assert "is no folder" in refused("compare", work / "nowhere", work / "out", "-o", work / "x")


def test_runs_of_other_traces_are_not_compared(work):
    shorter = ("--set", "trace.synth.requests=3")
    run("replay", work / "scenario.yaml", "--engine", "reference", *shorter, "-o", work / "out")
    predicted = work / "sweep" / "winners" / "baseline"
    assert "3 requests measured, 6 predicted" in refused("compare", predicted, work / "out", "-o", work / "x")
    assert len(pl.read_parquet(work / "out" / "requests.parquet")) == 3
    assert not (work / "x").exists()
