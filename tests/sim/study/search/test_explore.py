"""A search: the same however it came about, right where everything can be tried, honest about what it stopped."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from ground.errors import UserError
from sim.results.folder import read_run
from sim.results.metric_names import flatten
from sim.results.pareto import pareto_front
from sim.study.points import Point, run_point
from sim.study.search.comparison import broken, comparisons, seeds_draw_nothing
from sim.study.search.explore import expected_runs, search
from sim.study.search.ranking import chosen, feasible, front, ranked
from sim.study.search.report import write_search_report
from sim.study.search.results import points_table, write_search
from sim.study.search.study import SearchStudy, load_search
from sim.study.search.trials import Trial
from sim.study.workers import LocalWorkers
from validate.sweep import candidates

SCENARIO: dict[str, Any] = {
    "trace": {
        "synth": {
            "requests": 30,
            "arrivals": {"process": "poisson", "rate": 30},
            "lengths": {
                "prompt": {"distribution": "uniform", "low": 10, "high": 400},
                "output": {"distribution": "uniform", "low": 2, "high": 20},
            },
        }
    },
    "model": "Llama-3.1-8B",
    "profile": "datasheet:h100-sxm-80gb",
    "gpu_hour_price": 2.0,
}
# Few sequences wait, many decode slowly, replicas cost: of two objectives some settings of each kind are on the front.
GRID: dict[str, Any] = {
    "scenario": SCENARIO,
    "objectives": ["min ttft.p99", "min cost.per_million_tokens"],
    "constraints": ["tpot.p99 <= 0.1"],
    "parameters": {"engine.max_num_seqs": [1, 2, 4, 16], "fleet.replicas": [1, 2, 3]},
    "points": 12,
    "seeds": 2,
    "winners": 2,
}
# A range, so that a sampler proposes; one of the policies has a parameter of its own.
SAMPLED: dict[str, Any] = {
    **GRID,
    "parameters": {
        "fleet.replicas": [1, 2, 3],
        "engine.max_num_seqs": {"low": 1, "high": 17, "integer": True, "log": True},
        "fleet.router": {"values": ["round_robin", "power_of_two"], "when": {"fleet.replicas": [2, 3]}},
    },
    "points": 9,
    "batch": 4,
    "seeds": 1,
    "stop_early": {"parts": [0.3], "keep": 0.5, "audit": 1},
}


def formula(scenario: dict[str, Any], index: int, setting: dict[str, Any]) -> Point:
    """In place of a simulation: sequences and replicas help, a seed's trace is hard or easy for all, and the beginning
    of a trace misleads: on it nobody waits for sequences."""
    seqs, replicas = setting.get("engine.max_num_seqs", 4), setting.get("fleet.replicas", 1)
    share = setting.get("trace.first", {}).get("share", 1.0)
    hard = 1.0 + 0.3 * math.sin(17.0 * setting["seed"])
    ttft = hard * (8.0 / (seqs if share == 1.0 else 1) + seqs / 40.0) / replicas
    metrics = {"requests.total": round(100 * share), "ttft.p99": ttft, "ttft.mean": ttft / 2, "tpot.p99": seqs / 200.0}
    metrics |= {"cost.per_million_tokens": 2.0 * replicas + 1.0 / seqs, "e2e.mean": 2 * ttft, "duration": 10.0 * share}
    return {"point": index, "status": "ok", "error": None, "metrics": metrics}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sim.study.points.run_point", formula)


def study(**changes: Any) -> SearchStudy:
    return SearchStudy.model_validate(GRID | changes)


def means(made: SearchStudy, setting: dict[str, Any], seeds: list[int]) -> dict[str, float]:
    runs = [run_point(made.scenario, 0, {**setting, "seed": seed})["metrics"] for seed in seeds]
    return {name: sum(run[name] for run in runs) / len(runs) for name in runs[0] if runs[0][name] is not None}


def test_a_small_space_is_tried_whole_and_its_front_is_the_grids(tmp_path: Path) -> None:
    made = study(parameters={"engine.max_num_seqs": [1, 4, 16], "fleet.replicas": [1, 2]})
    found = search(made, tmp_path / "out")
    assert found.whole and len(found.trials) == 7
    grid = [{}, *made.space.settings()]
    assert [trial.setting for trial in found.trials.values()] == grid
    values = [means(made, setting, [0, 1]) for setting in grid]
    costs = [[value["ttft.p99"], value["cost.per_million_tokens"]] for value in values]
    wanted = pareto_front(np.array(costs), ["smaller", "smaller"])
    assert sorted(found.front) == wanted and 2 <= len(wanted) < 7
    assert [found.trials[number].mean("ttft.p99") for number in found.front] == sorted(
        costs[number][0] for number in wanted
    )
    assert found.winners == [found.front[0], found.front[-1]]


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("method", ["tpe", "nsga2"])
def test_interrupted_anywhere_it_ends_the_same(method: str, tmp_path: Path) -> None:
    """Interrupted after ever more runs, it goes on each time; all that it writes is what one call writes."""
    made = SearchStudy.model_validate(SAMPLED | {"method": method})
    whole, cut, runs = tmp_path / "whole", tmp_path / "cut", 0

    class Enough(Exception):
        pass

    def limited(limit: int) -> Any:
        told = [0]

        def on_run(_: Point) -> None:
            told[0] += 1
            if told[0] > limit:
                raise Enough

        return on_run

    for limit in (1, 6, 15):
        with pytest.raises(Enough):
            search(made, cut, on_run=limited(limit))
        assert (cut / "runs.jsonl").read_text().count("\n") == limit + 1
    for folder in (whole, cut):
        found = search(made, folder)
        (folder / "search.txt").write_text(repr((found.trials, found.front, found.winners, found.fresh)))
    for name in ("runs.jsonl", "search.txt", "search.yaml"):
        assert (whole / name).read_bytes() == (cut / name).read_bytes()
    runs = (whole / "runs.jsonl").read_text().count("\n")
    assert runs <= expected_runs(made)


def test_any_number_of_workers_finds_the_same(tmp_path: Path) -> None:
    made = SearchStudy.model_validate(SAMPLED | {"points": 4, "batch": 2, "winners": 1})
    alone = search(made, tmp_path / "alone")
    with LocalWorkers(2) as workers:
        together = search(made, tmp_path / "together", workers=workers)
    assert alone == together
    assert points_table(alone).equals(points_table(together))


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("objectives", [["min ttft.p99"], ["min ttft.p99", "min cost.per_million_tokens"]])
def test_a_stopped_point_that_would_have_won_is_found_by_the_audit(objectives: list[str], tmp_path: Path) -> None:
    """With all stopped points simulated whole nothing is lost: the front is that of the grid, and what it would have
    lacked is among what the audit says."""
    early = {"parts": [0.2, 0.5], "keep": 0.4, "audit": 12}
    halved = search(study(objectives=objectives, stop_early=early), tmp_path / "halved")
    grid = search(study(objectives=objectives), tmp_path / "grid")
    assert len(halved.audited) == 10 and set(halved.front) == set(grid.front)
    lost = set(grid.front) & set(halved.audited)
    assert lost and lost <= set(halved.missed)
    whole = {number: trial for number, trial in halved.trials.items() if number not in halved.audited}
    for number in halved.audited:
        alone = front({**whole, number: halved.trials[number]}, halved.study.wanted, halved.study.limits)
        assert (number in halved.missed) == (number in alone)


@pytest.mark.usefixtures("quick")
def test_what_is_hopeless_is_stopped_early(tmp_path: Path) -> None:
    """On the part only replicas matter, so all that go on have the most."""
    found = search(study(objectives=["min ttft.p99"], stop_early={"parts": [0.4], "keep": 0.25}), tmp_path / "out")
    stopped = [trial for trial in found.trials.values() if trial.status == "stopped"]
    assert len(stopped) == 9 and {trial.share for trial in stopped} == {0.4}
    assert all(trial.requests == 2 * 40 for trial in stopped)
    assert found.requests == 2 * (12 * 40 + 3 * 100)
    ended = [trial for number, trial in found.trials.items() if trial.status == "ok" and number]
    assert {trial.setting["fleet.replicas"] for trial in ended} == {3}


def test_a_part_is_the_beginning_of_the_trace(tmp_path: Path) -> None:
    made = study(
        parameters={"engine.max_num_seqs": [1, 2]}, seeds=1, winners=1, stop_early={"parts": [0.4], "keep": 0.5}
    )
    found = search(made, tmp_path / "out")
    (stopped,) = (trial for trial in found.trials.values() if trial.status == "stopped")
    part = run_point(SCENARIO, 0, {**stopped.setting, "seed": 0, "trace.first": {"requests": 12}})["metrics"]
    assert stopped.requests == 12 and stopped.mean("ttft.p99") == part["ttft.p99"]


def test_the_folder_holds_what_was_found(tmp_path: Path) -> None:
    traces = [SCENARIO["trace"], {**SCENARIO["trace"], "scale": {"stretch": 0.5}}]
    made = study(parameters={"engine.max_num_seqs": [1, 2, 16]}, winners=1, traces=traces)
    folder = tmp_path / "out"
    found = search(made, folder)
    write_search(found, folder)
    points = pl.read_parquet(folder / "points.parquet")
    assert points["point"].to_list() == list(range(4)) and points["status"].unique().to_list() == ["ok"]
    assert points["engine.max_num_seqs"].to_list() == [256, 1, 2, 16]
    both = [{**cell, **found.trials[2].setting} for row in made.cells() for cell in row]
    runs = [run_point(made.scenario, 0, setting)["metrics"]["e2e.p50"] for setting in both]
    assert len(runs) == 4 and points["e2e.p50"][2] == pytest.approx(sum(runs) / 4)
    winners = json.loads((folder / "winners.json").read_text())
    assert [winner["name"] for winner in winners] == ["winner-1", "baseline"]
    assert {winner["objective"] for winner in winners} == {"ttft.p99"}
    for winner in winners:
        run = read_run(folder / winner["run"])
        cell = made.cells(fresh=True)[0][0]
        assert cell["seed"] == 2 and run.scenario == made.scenario_of({**cell, **winner["parameters"]}).resolved()
        again = run_point(made.scenario, 0, {**made.cells(fresh=True)[0][1], **winner["parameters"]})["metrics"]
        both_traces = (flatten(run.metrics)["e2e.p99"] + again["e2e.p99"]) / 2
        assert found.fresh[winner["point"]].values["e2e.p99"][0] == pytest.approx(both_traces)
    assert [candidate.name for candidate in candidates(folder, "search")] == ["winner-1", "baseline"]
    result = json.loads((folder / "search.json").read_text())
    assert result["front"] == found.front and result["points"]["ok"] == 4 and result["whole_space"]
    page = (folder / "report.html").read_text()
    assert "Pareto front" in page and "better" in page


@pytest.mark.usefixtures("quick")
def test_winners_are_compared_on_seeds_that_chose_nothing(tmp_path: Path) -> None:
    found = search(study(seeds=4), tmp_path / "out")
    fast = found.winners[0]
    rows = {row.metric: row for row in comparisons(found) if row.trial == fast and row.other == 0}
    fresh = [formula(SCENARIO, 0, {**found.trials[fast].setting, "seed": seed})["metrics"] for seed in range(4, 8)]
    base = [formula(SCENARIO, 0, {"seed": seed})["metrics"] for seed in range(4, 8)]
    changes = [one["ttft.p99"] - other["ttft.p99"] for one, other in zip(fresh, base, strict=True)]
    assert rows["ttft.p99"].change.mean == pytest.approx(sum(changes) / 4)
    assert rows["cost.per_million_tokens"].verdict == "worse"  # it has three times the replicas
    assert not seeds_draw_nothing(found) and broken(found, fast) == []


@pytest.mark.usefixtures("quick")
def test_equal_settings_are_no_different(tmp_path: Path) -> None:
    """Blocks that nobody needs: the winner is the first, and no better than the baseline."""
    blocks = {"engine.kv_blocks": [5_000, 10_000]}
    found = search(study(parameters=blocks, objectives=["min ttft.p99"]), tmp_path / "out")
    assert found.winners == [0, 1] and {row.verdict for row in comparisons(found)} == {"no difference"}


def test_a_trace_that_chance_does_not_touch_is_told(tmp_path: Path) -> None:
    rows = "".join(f"{0.02 * i},{100 + i},{5 + i % 7}\n" for i in range(20))
    (tmp_path / "t.csv").write_text("arrival,prompt_tokens,output_tokens\n" + rows)
    columns = {name: name for name in ("arrival", "prompt_tokens", "output_tokens")}
    trace = {"file": str(tmp_path / "t.csv"), "columns": columns}
    made = study(scenario={**SCENARIO, "trace": trace}, parameters={"engine.max_num_seqs": [1, 2]})
    found = search(made, tmp_path / "out")
    assert seeds_draw_nothing(found)
    write_search_report(found, points_table(found), tmp_path / "page.html")
    assert "Every seed gives the same" in (tmp_path / "page.html").read_text()


@pytest.mark.usefixtures("quick")
def test_nothing_keeps_to_the_constraints(tmp_path: Path) -> None:
    found = search(study(constraints=["ttft.p99 <= 1e-9"]), tmp_path / "out")
    assert found.winners == [] == found.front and list(found.fresh) == [0]
    write_search(found, tmp_path / "out")
    assert [winner["name"] for winner in json.loads((tmp_path / "out" / "winners.json").read_text())] == ["baseline"]
    assert "no point keeps to the constraints" in (tmp_path / "out" / "report.html").read_text()


def test_failures_are_points_too(tmp_path: Path) -> None:
    made = study(parameters={"engine.max_num_seqs": [2, 5_000], "engine.kv_blocks": [2, 100]}, seeds=1)
    found = search(made, tmp_path / "out")
    assert [trial.status for trial in found.trials.values()] == ["ok", "failed", "ok", "failed", "failed"]
    write_search(found, tmp_path / "out")
    table = pl.read_parquet(tmp_path / "out" / "points.parquet")
    assert "can never run" in table["error"][1] and table["ttft.p99"].null_count() == 3


def test_the_slo_is_the_constraint_where_none_is_given() -> None:
    made = study(scenario={**SCENARIO, "slo": {"ttft": 0.5, "attainment": 0.9}}, constraints=None)
    assert [str(limit) for limit in made.limits] == ["slo.attainment >= 0.9"]
    assert study(constraints=[]).limits == ()


def test_the_beginning_of_a_trace_that_is_cut_already() -> None:
    from sim.study.search.trials import _beginning

    assert _beginning({}, 0.2) == {"share": 0.2}
    assert _beginning({"seconds": 50.0}, 0.2) == {"seconds": 10.0}
    assert _beginning({"requests": 7}, 0.2) == {"requests": 2}
    assert _beginning({"share": 0.5}, 0.2) == {"share": 0.1}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"objectives": []}, "objectives"),
        ({"objectives": ["max ttft.p99"]}, "objectives: objective 'max ttft.p99': ttft.p99 is better smaller"),
        ({"objectives": ["ttft.p99", "min ttft.p99"]}, "expected each metric once"),
        ({"constraints": ["ttft.p99 < 1"]}, "constraints: constraint 'ttft.p99 < 1': expected a metric"),
        ({"parameters": {"seed": [1, 2]}}, "parameters.seed: is set by seeds"),
        ({"baseline": {"seed": 1}}, "baseline.seed: is set by seeds"),
        ({"parameters": {"engine.max_seqs": [1]}}, "parameters.engine.max_seqs: no such key in a scenario"),
        ({"parameters": {"engine.kv_blocks": []}}, "parameters.engine.kv_blocks: the list is empty"),
        ({"method": "bayes"}, "method: Input should be 'tpe', 'nsga2' or 'random', found 'bayes'"),
        ({"stop_early": {"parts": [0.5, 0.2]}}, "stop_early.parts: parts are [0.5, 0.2]; expected rising shares"),
        ({"stop_early": {"parts": [1.0]}}, "expected rising shares between 0 and 1"),
        ({"points": 0}, "points: Input should be greater than 0"),
        ({"traces": [{"file": "a.csv", "synth": {}}]}, "traces.0"),
        ({"traces": [SCENARIO["trace"]], "parameters": {"trace": [1]}}, "parameters.trace: is set by traces"),
        ({"pionts": 3}, "unknown key 'pionts'"),
        ({"scenario": {**SCENARIO, "sede": 1}}, "unknown key 'sede'"),
    ],
)
def test_a_mistake_names_its_key(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(GRID | changes))
    with pytest.raises(UserError) as caught:
        load_search(tmp_path / "study.yaml")
    assert said in caught.value.message and "\n" not in caught.value.message


def test_paths_start_at_the_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    changes = {
        "traces": [{"file": "a.csv"}, {"file": "/far/b.csv"}],
        "parameters": {
            "profile": {"values": ["study.yaml", "datasheet:l40s"], "when": {}},
            "engine.kv_blocks": {"values": [100], "when": {"profile": "study.yaml"}},
            "engine.speculative": [{"method": "draft", "draft_profile": "study.yaml"}],
        },
    }
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(GRID | changes, sort_keys=False))
    made = load_search(tmp_path / "study.yaml")
    assert [trace["file"] for trace in made.traces] == [str(tmp_path / "a.csv"), "/far/b.csv"]
    settings, here = list(made.space.settings()), str(tmp_path / "study.yaml")
    assert [setting["profile"] for setting in settings] == [here, "datasheet:l40s"]
    assert ["engine.kv_blocks" in setting for setting in settings] == [True, False]
    assert all(setting["engine.speculative"]["draft_profile"] == here for setting in settings)


@pytest.mark.usefixtures("quick")
def test_a_log_of_other_settings_is_refused(tmp_path: Path) -> None:
    made = study(parameters={"engine.max_num_seqs": [1, 2]}, seeds=1)
    search(made, tmp_path / "out")
    log = tmp_path / "out" / "runs.jsonl"
    log.write_text(log.read_text().replace('"engine.max_num_seqs": 2', '"engine.max_num_seqs": 3'))
    with pytest.raises(UserError, match=r"point 2 was simulated with .*: 3.* now it has .*: 2") as caught:
        search(made, tmp_path / "out")
    assert "\n" not in caught.value.message
    with pytest.raises(UserError, match="holds another search"):
        search(made.model_copy(update={"winners": 1}), tmp_path / "out")


def test_without_optuna_a_range_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    with pytest.raises(UserError, match=r"needs Optuna .*; pip install 'simctl\[search\]'"):
        search(SearchStudy.model_validate(SAMPLED), tmp_path / "out")
    small = study(parameters={"engine.max_num_seqs": [1]}, seeds=1)
    assert search(small, tmp_path / "small").whole


# Ranking.

NUMBERS = st.integers(0, 3).map(float)


def a_trial(ttft: float, cost: float, attainment: float, status: str = "ok") -> Trial:
    values: dict[str, list[float | None]] = {"ttft.p99": [ttft], "cost.total": [cost], "slo.attainment": [attainment]}
    return Trial({}, status, 1.0, None, values, {"slo.attainment": attainment}, 1)  # type: ignore[arg-type]


TRIALS = st.lists(st.builds(a_trial, NUMBERS, NUMBERS, st.sampled_from([0.5, 0.9, 1.0])), min_size=1, max_size=9)
RANKED = study(objectives=["min ttft.p99", "min cost.total"], constraints=["slo.attainment >= 0.9"])


@settings(max_examples=60)
@given(TRIALS)
def test_ranking_puts_nobody_behind_whom_he_beats(trials: list[Trial]) -> None:
    order = ranked(trials, RANKED.wanted, RANKED.limits)
    assert sorted(order) == list(range(len(trials)))

    def beats(one: Trial, other: Trial) -> bool:
        missed = [max(0.0, 0.9 - trial.mean("slo.attainment")) for trial in (one, other)]
        if missed != [0.0, 0.0]:
            return missed[0] < missed[1]
        pairs = [(one.mean(name), other.mean(name)) for name in ("ttft.p99", "cost.total")]
        return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)

    for place, behind in enumerate(order):
        assert not any(beats(trials[behind], trials[ahead]) for ahead in order[:place])
    numbered = dict(enumerate(trials))
    able = feasible(numbered, RANKED.limits)
    best = front(numbered, RANKED.wanted, RANKED.limits)
    assert set(best) == {number for number in able if not any(beats(trials[other], trials[number]) for other in able)}


@given(st.integers(0, 12), st.integers(1, 5))
def test_chosen_are_spread_over_the_front(size: int, count: int) -> None:
    picked = chosen(range(size), count)
    assert len(picked) == min(size, count) == len(set(picked)) and picked == sorted(picked)
    if size and count > 1:
        assert picked[0] == 0 and picked[-1] == size - 1
