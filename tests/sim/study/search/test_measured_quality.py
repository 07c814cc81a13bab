"""A search that limits quality takes what was measured, and refuses what nobody measured unless nothing is pruned."""

import json
from pathlib import Path
from typing import Any

import pytest

from calibrate.model import load_model
from calibrate.quality import Estimate, PolicyQuality, QualityTable, UnprunedQuality, model_fields
from ground.errors import UserError
from sim.study.scenario import scenario_of
from sim.study.search.explore import search
from sim.study.search.measured_quality import quality_of
from sim.study.search.results import points_table, write_search
from sim.study.search.study import SearchStudy

MODEL = "tiny-llama"
SCENARIO: dict[str, Any] = {
    "trace": {
        "synth": {
            "requests": 8,
            "arrivals": {"process": "constant", "rate": 50},
            "lengths": {
                "prompt": {"distribution": "constant", "value": 30},
                "output": {"distribution": "constant", "value": 5},
            },
        }
    },
    "model": MODEL,
    "profile": "datasheet:h100-sxm-80gb",
    "engine": {"kv_blocks": 200},
}
GOOD, BAD, UNKNOWN = ({"skip_layers": {"layers": [layer]}} for layer in (1, 2, 3))


def estimate(mean: float) -> Estimate:
    return Estimate(mean=mean, low=mean - 0.01, high=mean + 0.01)


@pytest.fixture
def measured(tmp_path: Path) -> str:
    """A file that knows a good and a bad policy of the model."""
    policies = []
    for pruning, top1 in ((GOOD, 0.98), (BAD, 0.7)):
        resolved = scenario_of(SCENARIO, {"engine.pruning": pruning}).resolved()["engine"]["pruning"]
        policies.append(
            PolicyQuality(
                pruning=resolved,
                kl=estimate(1 - top1),
                top1=estimate(top1),
                perplexity=estimate(4 / top1),
                perplexity_ratio=estimate(1 / top1),
            )
        )
    QualityTable(
        model=json.loads(json.dumps(model_fields(load_model(MODEL)))),
        weights={},
        text={},
        engine={},
        unpruned=UnprunedQuality(perplexity=estimate(4.0)),
        policies=policies,
    ).write(tmp_path / "quality.json")
    return str(tmp_path / "quality.json")


def quality(setting: dict[str, Any]) -> dict[str, float]:
    return quality_of(scenario_of(SCENARIO, setting))


def test_what_was_measured_is_found_with_its_ends(measured: str) -> None:
    found = quality({"engine.pruning": GOOD, "quality": measured})
    assert found["quality.top1"] == 0.98 and found["quality.perplexity"] == pytest.approx(4 / 0.98)
    assert found["quality.top1.low"] == pytest.approx(0.97) and found["quality.kl.high"] == pytest.approx(0.03)


def test_who_prunes_nothing_answers_as_the_model_does(measured: str) -> None:
    found = quality({})
    assert (found["quality.top1"], found["quality.kl"], found["quality.perplexity_ratio"]) == (1.0, 0.0, 1.0)
    assert found["quality.top1.low"] == 1.0 and "quality.perplexity" not in found
    assert quality({"quality": measured})["quality.perplexity"] == 4.0


def test_what_nobody_measured_is_refused(measured: str) -> None:
    with pytest.raises(UserError, match=r"quality not measured: the scenario names no quality\.json"):
        quality({"engine.pruning": GOOD})
    with pytest.raises(UserError, match=r"quality not measured: it is not in .*quality\.json"):
        quality({"engine.pruning": UNKNOWN, "quality": measured})
    with pytest.raises(UserError, match=r"nosuch\.json: cannot be read"):
        quality({"engine.pruning": GOOD, "quality": "/nosuch.json"})


def study(measured: str, **changes: Any) -> SearchStudy:
    given: dict[str, Any] = {
        "scenario": {**SCENARIO, "quality": measured},
        "objectives": ["min tpot.mean"],
        "constraints": ["quality.top1 >= 0.95"],
        "parameters": {"engine.pruning": [None, GOOD, BAD, UNKNOWN]},
        "points": 4,
        "seeds": 2,
        "winners": 1,
    }
    return SearchStudy.model_validate(given | changes)


def test_a_search_refuses_before_it_simulates(measured: str, tmp_path: Path) -> None:
    found = search(study(measured), tmp_path / "out")
    trials = list(found.trials.values())
    assert [trial.status for trial in trials] == ["ok", "ok", "ok", "refused", "refused"]
    assert trials[3].error == "quality.top1 is 0.7, expected >= 0.95"
    assert trials[4].error is not None and trials[4].error.startswith("quality not measured: it is not in")
    assert trials[2].mean("tpot.mean") < trials[1].mean("tpot.mean") == trials[0].mean("tpot.mean")
    assert found.winners == [2] and found.fresh[2].values["quality.top1"] == [0.98, 0.98]
    runs = [json.loads(line)["setting"] for line in (tmp_path / "out" / "runs.jsonl").read_text().splitlines()]
    assert all(run.get("engine.pruning") in (None, GOOD) for run in runs)
    write_search(found, tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Refused before they were simulated" in page and "quality not measured" in page
    assert points_table(found)["quality.top1"].to_list() == [1.0, 1.0, 0.98, 0.7, None]


def test_quality_may_be_an_objective(measured: str, tmp_path: Path) -> None:
    both = study(measured, objectives=["min tpot.mean", "max quality.top1"], constraints=[])
    found = search(both, tmp_path / "out")
    assert [trial.status for trial in found.trials.values()] == ["ok"] * 4 + ["refused"]
    # A layer less takes the same, whichever it is: of both the better answers are kept, beside the whole model.
    assert set(found.front) == {0, 1, 2}


def test_a_perplexity_that_is_not_known_is_said(tmp_path: Path) -> None:
    one = study("", objectives=["min quality.perplexity"], constraints=[], parameters={"engine.pruning": [None]})
    found = search(one.model_copy(update={"scenario": SCENARIO}), tmp_path / "out")
    assert {trial.error for trial in found.trials.values()} == {
        "quality.perplexity of the unpruned model is not known: the scenario names no quality.json"
    }
