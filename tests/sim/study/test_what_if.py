"""What would help: every remedy makes a valid scenario, and is ranked by what its run gives."""

import json
from pathlib import Path
from typing import Any

import pytest

from ground.errors import UserError
from sim.study import what_if as what_if_module
from sim.study.points import Point, run_point
from sim.study.remedies import REMEDIES, applicable
from sim.study.scenario import override, scenario_of
from sim.study.simulate import simulate
from sim.study.what_if import Trial, WhatIf, what_if
from sim.study.what_if_report import print_what_if, write_what_if

SYNTH: dict[str, Any] = {
    "requests": 60,
    "arrivals": {"process": "poisson", "rate": 40},
    "lengths": {
        "prompt": {"distribution": "uniform", "low": 10, "high": 400},
        "output": {"distribution": "uniform", "low": 2, "high": 40},
    },
}
SCENARIO: dict[str, Any] = {
    "trace": {"synth": SYNTH},
    "model": "Llama-3.1-8B",
    "profile": "datasheet:h100-sxm-80gb",
    "engine": {"max_num_seqs": 8, "kv_blocks": 400, "enable_prefix_caching": False},
}
MEMORY = {"malloc_seconds": 0.001, "free_seconds": 0.001}
# Scenarios that lack what the remedies bring; between them every remedy applies to one.
SICK: dict[str, dict[str, Any]] = {
    "no cache": {"engine.kv_cache": False, "engine.kv_blocks": None},
    "reserved": {"engine.kv_reservation": "oracle"},
    "sessions for ever": {
        "engine.enable_prefix_caching": True,
        "engine.session_retention": {"policy": "lru"},
        "engine.host_work": {"per_session": 0.001},
    },
    "forgetful": {"engine.enable_prefix_caching": True},
    "a link to the host": {"engine.enable_prefix_caching": True, "engine.host_bandwidth": 25e9},
    "gathering": {"engine.max_num_seqs": 8, "engine.batching": {"policy": "fixed_window", "seconds": 1, "cap": 6}},
    "shapes": {
        "engine.shapes": {"shape": "tokens", "build_seconds": 0.1, "build_bytes": 1000},
        "engine.memory": {"allocator": "caching", "leak_per_request": 1000, "retain_per_request": 1000, **MEMORY},
    },
    "native": {"engine.memory": {"allocator": "native", **MEMORY}},
    "fleet": {
        "fleet": {
            "replicas": 2,
            "weight_cache": {
                "capacity_models": 1,
                "load_bandwidth": 1e10,
                "ttl": 60.0,
                "single_flight": False,
            },
        }
    },
    "pools": {
        "fleet.disaggregation": {"prefill": {"replicas": 2}, "decode": {}, "link": {"kind": "ethernet-100g"}},
    },
    "sites": {"fleet.sites": {"edge": {"rtt": 0.01}, "central": {"replicas": 2}}},
}


@pytest.mark.parametrize("name", SICK)
def test_a_remedy_makes_a_valid_scenario_and_is_then_no_longer_needed(name: str) -> None:
    data = override(SCENARIO, SICK[name], name)
    for remedy, settings in applicable(scenario_of(data, {})):
        cured = scenario_of(data, settings)
        assert cured != scenario_of(data, {}), remedy.name
        again = remedy.settings(cured)
        assert again != settings, remedy.name


@pytest.mark.parametrize(
    "memory",
    [{"allocator": "native"}, {"settings": "max_split_size_mb:64", "empty_cache_every": 10}],
    ids=["native", "caching"],
)
def test_a_size_class_pool_takes_the_place_of_an_allocator_and_its_settings(memory: dict[str, Any]) -> None:
    data = override(SCENARIO, {"engine.memory": {**MEMORY, **memory}}, "")
    found = {remedy.name: settings for remedy, settings in applicable(scenario_of(data, {}))}
    cured = scenario_of(data, found["size-class pool"])
    run = simulate(cured)
    assert run.memory is not None and run.memory["reserved"].n_unique() == 1  # one pool, taken at once
    assert "size-class pool" not in {remedy.name for remedy, _ in applicable(cured)}


@pytest.mark.parametrize(
    ("given", "becomes"),
    [
        ("", "expandable_segments:True"),
        ("expandable_segments:False", "expandable_segments:True"),
        (
            "roundup_power2_divisions:[256:1,>:4], expandable_segments:False",
            "roundup_power2_divisions:[256:1,>:4],expandable_segments:True",
        ),
        ("expandable_segments:True", None),
    ],
)
def test_segments_expand_where_they_do_not_yet(given: str, becomes: str | None) -> None:
    scenario = scenario_of(SCENARIO, {"engine.memory": {"settings": given, **MEMORY}})
    found = {remedy.name: settings for remedy, settings in applicable(scenario)}
    assert found.get("expandable segments", {}).get("engine.memory.settings") == becomes


def test_what_is_scaled_needs_no_other_replica() -> None:
    hpa = {"policy": "hpa", "max": 3}
    for fleet in (
        {"autoscaler": hpa},
        {"disaggregation": {"prefill": {"autoscaler": hpa}, "decode": {}, "link": {"kind": "ethernet-100g"}}},
    ):
        found = {remedy.name: settings for remedy, settings in applicable(scenario_of(SCENARIO, {"fleet": fleet}))}
        assert "another replica" not in found and "another prefill replica" not in found
        key = "fleet.disaggregation.decode.replicas"
        assert found.get("another decode replica") == ({key: 2} if "disaggregation" in fleet else None)


def test_every_remedy_applies_somewhere() -> None:
    found = {remedy.name for sick in SICK.values() for remedy, _ in applicable(scenario_of(SCENARIO, sick))}
    assert found == {remedy.name for remedy in REMEDIES}
    assert len(found) == len(REMEDIES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("what-if") / "tried"


@pytest.fixture(scope="module")
def found(folder: Path) -> WhatIf:
    return what_if(SCENARIO, folder)


def test_trials_are_the_runs_of_their_settings_best_first(found: WhatIf) -> None:
    assert found.baseline.metrics["e2e.p99"] == simulate(scenario_of(SCENARIO, {})).metrics["e2e"]["p99"]
    for trials in (found.alone, found.pairs):
        gains = [found.gain(trial, "e2e.p99") for trial in trials]
        assert None not in gains and gains == sorted(gains, reverse=True)
    best = found.alone[0]
    run = simulate(scenario_of(SCENARIO, best.settings))
    assert best.metrics["e2e.p99"] == run.metrics["e2e"]["p99"] < found.baseline.metrics["e2e.p99"]
    assert best.remedies in {("more sequences",), ("another replica",)}  # eight seats for a burst: it queues


def test_pairs_are_of_the_best_and_gain_what_both_set(found: WhatIf) -> None:
    best = {trial.remedies[0]: trial for trial in found.alone[:4]}
    assert found.pairs
    for pair in found.pairs:
        one, other = pair.remedies
        assert {one, other} <= best.keys() and one != other
        assert pair.settings == best[one].settings | best[other].settings


def test_the_same_call_goes_on_where_it_was(folder: Path, found: WhatIf, monkeypatch: pytest.MonkeyPatch) -> None:
    log = folder / "points.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join(lines[:3]))
    simulated: list[int] = []

    def counted(scenario: dict[str, Any], index: int, setting: dict[str, Any]) -> Point:
        simulated.append(index)
        return run_point(scenario, index, setting)

    monkeypatch.setattr("sim.study.points.run_point", counted)
    assert what_if(SCENARIO, folder) == found
    assert simulated == list(range(3, len(lines)))
    with pytest.raises(UserError, match="holds another what-if"):
        what_if(SCENARIO, folder, objective="ttft.p99")


def test_other_remedies_are_another_what_if(folder: Path, found: WhatIf, monkeypatch: pytest.MonkeyPatch) -> None:
    """The log knows its points by number: under another list they would be taken for other remedies."""
    before = (folder / "points.jsonl").read_bytes()
    first, *others = applicable(scenario_of(SCENARIO, {}))
    harder = first[0], {**first[1], "seed": 9}
    for changed in (others, [*others, first], [harder, *others]):
        monkeypatch.setattr(what_if_module, "applicable", lambda scenario, changed=changed: changed)
        with pytest.raises(UserError, match="holds another what-if"):
            what_if(SCENARIO, folder)
    monkeypatch.undo()
    monkeypatch.setattr(what_if_module, "PAIRED", 1)
    with pytest.raises(UserError, match="holds another what-if, with other pairs"):
        what_if(SCENARIO, folder)
    assert (folder / "points.jsonl").read_bytes() == before


def test_what_is_written_is_what_was_found(folder: Path, found: WhatIf, tmp_path: Path) -> None:
    written = json.loads((folder / "what-if.json").read_text())
    assert [entry["remedies"] for entry in written["alone"]] == [list(trial.remedies) for trial in found.alone]
    assert written["baseline"]["metrics"] == found.baseline.metrics
    write_what_if(found, "a <scenario>", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "a &lt;scenario&gt;: what would help" in page and "another replica" in page


def test_the_terminal_shows_values_and_gains(found: WhatIf, capsys: pytest.CaptureFixture[str]) -> None:
    print_what_if(found)
    shown = capsys.readouterr().out
    assert "as it stands" in shown and " %" in shown


def test_a_failing_remedy_comes_last_and_says_why() -> None:
    baseline = Trial((), {}, {"e2e.p99": 2.0}, None)
    better, failed = Trial(("a",), {}, {"e2e.p99": 1.0}, None), Trial(("b",), {}, {}, "no room")
    found = WhatIf("e2e.p99", baseline, [better, failed], [])
    assert [found.gain(trial, "e2e.p99") for trial in found.alone] == [0.5, None]


def test_a_gain_over_what_is_negative_has_the_right_sign() -> None:
    """Reserved memory that falls by 5 bytes a minute: to fall by 10 is better, to rise by 5 is worse."""
    falls = WhatIf("memory.growth", Trial((), {}, {"memory.growth": -5.0}, None), [], [])
    gains = [falls.gain(Trial(("a",), {}, {"memory.growth": value}, None), "memory.growth") for value in (-10.0, 5.0)]
    assert gains == [1.0, -2.0]


def test_mistakes_are_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the scenario as it stands fails: .*can never run"):
        what_if(override(SCENARIO, {"engine.kv_blocks": 2}, ""), tmp_path / "a")
    with pytest.raises(UserError, match="neither better large nor small"):
        what_if(SCENARIO, tmp_path / "b", objective="decode_batch")
    assert not (tmp_path / "b").exists()
