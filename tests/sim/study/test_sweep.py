"""A sweep: each point durable, failures kept, the table the same however it came about."""

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from ground.errors import UserError
from sim.results.folder import read_run
from sim.results.metric_names import METRICS, flatten
from sim.study.points import Point, run_point
from sim.study.simulate import simulate
from sim.study.study import Study
from sim.study.sweep import best, sweep

SCENARIO: dict[str, Any] = {
    "trace": {
        "synth": {
            "requests": 25,
            "arrivals": {"process": "poisson", "rate": 20},
            "lengths": {
                "prompt": {"distribution": "uniform", "low": 10, "high": 400},
                "output": {"distribution": "uniform", "low": 2, "high": 20},
            },
        }
    },
    "model": "Llama-3.1-8B",
    "profile": "datasheet:h100-sxm-80gb",
    "slo": {"ttft": 0.05, "attainment": 0.5},
}
# The second number of sequences exceeds the token budget, and no request fits one block: both fail, each its own way.
STUDY = Study(
    scenario=SCENARIO,
    parameters={"engine.max_num_seqs": [2, 5000], "engine.kv_blocks": [2, 100]},
    winners=2,
)


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sweeps") / "whole"
    sweep(STUDY, folder)
    return folder


def test_a_failing_point_is_recorded_and_the_rest_go_on(swept: Path) -> None:
    points = pl.read_parquet(swept / "points.parquet")
    assert points["point"].to_list() == [0, 1, 2, 3, 4]
    assert points["status"].to_list() == ["ok", "failed", "ok", "failed", "failed"]
    errors = points["error"].to_list()
    assert errors[0] is None and errors[2] is None
    assert "can never run, the KV pool has 2 blocks of 16" in errors[1]
    assert errors[3] == errors[4] and "expected at least max_num_seqs (5000)" in errors[3]
    assert points["engine.max_num_seqs"].to_list() == [256, 2, 2, 5000, 5000]
    assert points["ttft.p99"].null_count() == 3


def test_a_bug_in_one_point_does_not_end_the_study(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: object) -> None:
        raise ZeroDivisionError("half a request")

    monkeypatch.setattr("sim.study.points.simulate", broken)
    assert run_point(STUDY.scenario, 3, {}) == {
        "point": 3,
        "status": "failed",
        "error": "ZeroDivisionError: half a request",
        "metrics": {},
    }


def test_a_row_is_the_run_of_its_scenario(swept: Path) -> None:
    points = pl.read_parquet(swept / "points.parquet")
    run = simulate(STUDY.scenario_of({"engine.max_num_seqs": 2, "engine.kv_blocks": 100}))
    row = points.row(2, named=True)
    assert {name: row[name] for name in METRICS} == flatten(run.metrics)


def test_winners_are_complete_runs_best_first(swept: Path) -> None:
    winners = json.loads((swept / "winners.json").read_text())
    points = pl.read_parquet(swept / "points.parquet")
    ranked = (
        points.filter(pl.col("slo.met") == 1.0)
        .sort("goodput.requests", "point", descending=[True, False])["point"]
        .to_list()
    )
    assert [winner["point"] for winner in winners] == [*ranked[:2], 0]
    assert winners[-1]["name"] == "baseline" and winners[-1]["parameters"] == {}
    for winner in winners:
        run = read_run(swept / winner["run"])
        assert run.scenario == STUDY.scenario_of(winner["parameters"]).resolved()
        assert flatten(run.metrics)["e2e.p99"] == points["e2e.p99"][winner["point"]]
    assert "<html" in (swept / "report.html").read_text()


def test_only_what_is_missing_is_simulated_again(swept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A log with two whole lines and half a third, as a kill leaves it."""
    folder = tmp_path / "sweep"
    folder.mkdir()
    (folder / "study.yaml").write_bytes((swept / "study.yaml").read_bytes())
    lines = (swept / "points.jsonl").read_text().splitlines(keepends=True)
    (folder / "points.jsonl").write_text("".join(lines[:2]) + lines[2][: len(lines[2]) // 2])
    simulated, told = [], []

    def counted(scenario: dict[str, Any], index: int, setting: dict[str, Any]) -> Point:
        simulated.append(index)
        return run_point(scenario, index, setting)

    monkeypatch.setattr("sim.study.points.run_point", counted)
    sweep(STUDY, folder, on_point=lambda point: told.append(point["point"]))
    assert simulated == [2, 3, 4] and told == [0, 1, 2, 3, 4]
    for name in ("points.jsonl", "points.parquet", "winners.json", "winners/baseline/requests.parquet"):
        assert (folder / name).read_bytes() == (swept / name).read_bytes()


def test_a_point_is_durable_before_it_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    told: list[int] = []

    def on_point(point: Point) -> None:
        told.append(point["point"])
        written = [json.loads(line)["point"] for line in (folder / "points.jsonl").read_text().splitlines()]
        assert written == told
        if len(told) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sweep(STUDY, folder, on_point=on_point)
    assert not (folder / "points.parquet").exists()
    assert len((folder / "points.jsonl").read_text().splitlines()) == 2


def test_the_order_in_which_points_finish_leaves_no_trace(swept: Path, tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    folder.mkdir()
    (folder / "study.yaml").write_bytes((swept / "study.yaml").read_bytes())
    lines = (swept / "points.jsonl").read_text().splitlines(keepends=True)
    (folder / "points.jsonl").write_text("".join(reversed(lines)))
    sweep(STUDY, folder)
    assert (folder / "points.parquet").read_bytes() == (swept / "points.parquet").read_bytes()


def test_a_folder_of_something_else_is_left_alone(swept: Path, tmp_path: Path) -> None:
    other = STUDY.model_copy(update={"winners": 1})
    before = (swept / "points.jsonl").read_bytes()
    with pytest.raises(UserError, match="holds another study"):
        sweep(other, swept)
    assert (swept / "points.jsonl").read_bytes() == before
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(UserError, match="holds something else"):
        sweep(STUDY, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_a_broken_line_is_named(swept: Path, tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    folder.mkdir()
    (folder / "study.yaml").write_bytes((swept / "study.yaml").read_bytes())
    lines = (swept / "points.jsonl").read_text().splitlines(keepends=True)
    (folder / "points.jsonl").write_text(lines[0] + "\0\0\0\n" + lines[1])
    with pytest.raises(UserError, match=r"points\.jsonl: line 2: .* remove it") as caught:
        sweep(STUDY, folder)
    assert "\n" not in caught.value.message


def test_best_ranks_those_that_meet_the_slo() -> None:
    def point(index: int, status: str = "ok", met: float = 1.0, **metrics: float | None) -> Point:
        return {"point": index, "status": status, "error": None, "metrics": {"slo.met": met} | metrics}

    points = [
        point(0, **{"ttft.p99": 3.0}),
        point(1, **{"ttft.p99": 1.0}),
        point(2, met=0.0, **{"ttft.p99": 0.5}),
        point(3, **{"ttft.p99": None}),
        point(4, **{"ttft.p99": 1.0}),
        {"point": 5, "status": "failed", "error": "no", "metrics": {}},
    ]
    assert best(points, "ttft.p99") == [1, 4, 0]
    larger = [point(0, **{"goodput.requests": 1.0}), point(1, **{"goodput.requests": 2.0})]
    assert best(larger, "goodput.requests") == [1, 0]


def test_nobody_meets_the_slo(tmp_path: Path) -> None:
    hard = Study(scenario=SCENARIO | {"slo": {"ttft": 1e-9}}, parameters={"engine.max_num_seqs": [2]})
    sweep(hard, tmp_path / "sweep")
    assert [w["name"] for w in json.loads((tmp_path / "sweep" / "winners.json").read_text())] == ["baseline"]


def test_every_point_fails(tmp_path: Path) -> None:
    hopeless = Study(scenario=SCENARIO | {"engine": {"kv_blocks": 1}}, parameters={"engine.max_num_seqs": [2, 3]})
    sweep(hopeless, tmp_path / "sweep")
    assert pl.read_parquet(tmp_path / "sweep" / "points.parquet")["status"].to_list() == ["failed"] * 3
    assert json.loads((tmp_path / "sweep" / "winners.json").read_text()) == []


def test_values_of_different_kinds_in_one_column(tmp_path: Path) -> None:
    scales = [{"stretch": 2.0}, {"thin": 0.5}]
    mixed = Study(scenario=SCENARIO, parameters={"trace.scale": scales, "engine.kv_blocks": [500, "many"]})
    sweep(mixed, tmp_path / "sweep")
    points = pl.read_parquet(tmp_path / "sweep" / "points.parquet")
    assert points["status"].to_list() == ["ok", "ok", "failed", "ok", "failed"]
    stretched, thinned = points["requests.total"][1], points["requests.total"][3]
    assert stretched == 25 and thinned < 25


def test_a_seed_among_the_parameters_draws_another_trace(tmp_path: Path) -> None:
    seeds = Study(scenario=SCENARIO, parameters={"seed": [0, 1]})
    sweep(seeds, tmp_path / "sweep")
    points = pl.read_parquet(tmp_path / "sweep" / "points.parquet")
    same = points.drop("point", "seed")
    assert_frame_equal(same[0], same[1])
    assert not same[1].equals(same[2])
