"""`simctl validate train` and `simctl validate quality` from the command line."""

import json

import pytest
import torch
import yaml
from click.testing import CliRunner

# Puts tests/support on the path.
from small_language_model import SMALL, small_corpus

from calibrate.model import load_model
from calibrate.quality import read_quality
from sim.engine.pruning.settings import PruningSettings
from simctl import main
from validate.quality.language_model import LanguageModel
from validate.quality.policies import pruned_model

SCENARIO = {
    "trace": {
        "synth": {
            "requests": 4,
            "arrivals": {"process": "constant", "rate": 100},
            "lengths": {
                "prompt": {"distribution": "constant", "value": 20},
                "output": {"distribution": "constant", "value": 4},
            },
        }
    },
    "model": "model",
    "profile": "datasheet:h100-sxm-80gb",
    "engine": {"preset": "reference", "kv_blocks": 32, "max_num_seqs": 4, "max_num_batched_tokens": 64},
}
SKIP = {"skip_layers": {"layers": [1]}}
WINDOW = {"window": {"sinks": 16, "window": 32}}


@pytest.fixture(autouse=True)
def small_and_one_thread(monkeypatch):
    before = torch.get_num_threads()
    monkeypatch.setattr("validate.quality.text.python_text", lambda only_held_out=False: small_corpus())
    monkeypatch.setattr("validate.quality.language_model.SHAPE", SMALL)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def work(tmp_path):
    """A scenario that prunes, its model beside it, and three studies of it."""
    (tmp_path / "model").mkdir()
    LanguageModel.drawn(SMALL, 0, 16).save(tmp_path / "model")
    scenario = SCENARIO | {"engine": SCENARIO["engine"] | {"pruning": SKIP}}
    write(tmp_path / "scenario.yaml", scenario)
    write(tmp_path / "sweep.yaml", {"scenario": SCENARIO, "parameters": {"engine.pruning": [None, SKIP, WINDOW]}})
    parameters = {"engine.max_num_seqs": {"low": 1, "high": 9, "integer": True}, "engine.pruning": [None, WINDOW]}
    search = {"scenario": SCENARIO, "objectives": ["min ttft.p99"], "points": 4, "parameters": parameters}
    write(tmp_path / "search.yaml", search)
    return tmp_path


def write(path, data):
    path.write_text(yaml.safe_dump(data))


def run(*arguments, code=0):
    result = CliRunner(env={"COLUMNS": "200"}).invoke(main, ["validate", *map(str, arguments)])
    if code == 0 and result.exception:
        raise result.exception
    assert result.exit_code == code, result.output
    return result.output


def refused(*arguments):
    *_, line = run(*arguments, code=2).splitlines()
    assert line.startswith("simctl: ")
    return line


def test_what_is_trained_is_what_the_engine_loads(tmp_path):
    output = run("train", "--steps", 2, "--threads", 1, "-o", tmp_path / "model")
    assert "bits a byte of held-out text: model" in output
    facts = json.loads((tmp_path / "model" / "training.json").read_text())
    assert facts["training"]["steps"] == 2
    assert facts["text"] == small_corpus().facts()
    assert load_model(tmp_path / "model").differences(SMALL) == []
    assert "is not empty" in refused("train", "--steps", 2, "-o", tmp_path / "model")
    run("train", "--steps", 1, "--force", "-o", tmp_path / "model")
    assert json.loads((tmp_path / "model" / "training.json").read_text())["training"]["steps"] == 1


def test_interrupted_training_writes_nothing(tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("validate.quality.train.train", interrupted)
    assert "nothing was written" in run("train", "-o", tmp_path / "model", code=130)
    assert list(tmp_path.iterdir()) == []


def test_policies_of_scenario_sweep_and_search(work):
    for name, expected in (("scenario", [SKIP]), ("sweep", [SKIP, WINDOW]), ("search", [WINDOW])):
        found = pruned_model(work / f"{name}.yaml")
        assert found.policies == [PruningSettings(**pruning) for pruning in expected]
        assert load_model(found.model).differences(SMALL) == []


def test_quality_of_a_sweep_goes_on_where_it_was(work, monkeypatch):
    write(work / "first.yaml", {"scenario": SCENARIO, "parameters": {"engine.pruning": [SKIP]}})
    run("quality", work / "first.yaml", "--threads", 1, "-o", work / "quality")
    first = read_quality(work / "quality" / "quality.json")
    output = run("quality", work / "sweep.yaml", "-o", work / "quality")
    both = read_quality(work / "quality" / "quality.json")
    assert [policy.pruning for policy in both.policies] == [SKIP, WINDOW]
    assert both.policies[0] == first.policies[0]
    assert "skip_layers: layers 1" in output
    body = (work / "quality" / "report.html").read_text()
    assert "window: sinks 16, window 32" in body
    assert both.text["sha256"] in body

    monkeypatch.setattr("validate.quality.measure._quality", None)  # nothing is left to measure
    run("quality", work / "sweep.yaml", "-o", work / "quality")


def test_an_interrupted_measure_keeps_what_it_has(work, monkeypatch):
    from validate.quality import measure

    original = measure._quality

    def interrupted(pruning, *rest):
        if "window" in pruning:
            raise KeyboardInterrupt
        return original(pruning, *rest)

    monkeypatch.setattr(measure, "_quality", interrupted)
    assert "the same command goes on" in run("quality", work / "sweep.yaml", "-o", work / "quality", code=130)
    assert [policy.pruning for policy in read_quality(work / "quality" / "quality.json").policies] == [SKIP]


def test_what_cannot_be_measured_is_one_line(work):
    write(work / "plain.yaml", SCENARIO)
    assert "prunes nothing" in refused("quality", work / "plain.yaml", "-o", work / "out")
    write(work / "other.yaml", SCENARIO | {"model": "tiny-llama", "engine": SCENARIO["engine"] | {"pruning": SKIP}})
    assert "no weights lie beside it" in refused("quality", work / "other.yaml", "-o", work / "out")
    weights = ("--weights", work / "model")
    assert "has 4096 tokens" in refused("quality", work / "other.yaml", *weights, "-o", work / "out")
    parameters = {"model": ["tiny-llama", "Llama-3.1-8B"], "engine.pruning": [SKIP]}
    write(work / "two.yaml", {"scenario": SCENARIO, "parameters": parameters})
    assert "expected one model" in refused("quality", work / "two.yaml", "-o", work / "out")
    drawn = {"engine.pruning.window.window": {"low": 16, "high": 64, "integer": True}}
    search = {"scenario": SCENARIO, "objectives": ["min ttft.p99"], "points": 2, "parameters": drawn}
    write(work / "drawn.yaml", search)
    assert "is a range" in refused("quality", work / "drawn.yaml", "-o", work / "out")
    (work / "out").mkdir()
    (work / "out" / "quality.json").write_text("{")
    assert "not a JSON file" in refused("quality", work / "sweep.yaml", "-o", work / "out")
