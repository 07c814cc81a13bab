"""Run a study: its points, its winners in full, its tables and report."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import polars as pl
import yaml

from ground.errors import UserError
from ground.folder import open_folder
from ground.whole_file import whole_file
from sim.results.folder import write_run
from sim.results.metric_names import describe
from sim.results.pareto import sweep_fronts
from sim.results.sweep_report import write_sweep_report
from sim.study.points import Point, run_points, table_cell
from sim.study.scenario import Scenario, lookup
from sim.study.simulate import simulate
from sim.study.study import Study
from sim.study.workers import Workers

BASELINE = 0  # the point that the study's `baseline` is


def sweep(
    study: Study,
    folder: Path,
    *,
    workers: Workers | None = None,
    on_point: Callable[[Point], None] = lambda _: None,
) -> None:
    """Simulate every point of `study` that `folder` does not hold yet, then write its tables and report.

    `folder` gets `study.yaml`, `points.jsonl` (one finished point a line, in the order in which they finished),
    `points.parquet` (in order of point), `winners.json`, `winners/NAME/` (complete runs) and `report.html`.
    Killed at any moment, the same call goes on where it was. The result does not depend on `workers`. `on_point` is
    told of every finished point, also of those found.

    Raises:
        UserError: `folder` holds something else, or another study; or it cannot be written; or a worker was killed.
    """
    open_study_folder(study, folder)
    settings = study.settings()
    points = run_points(study.scenario, settings, folder / "points.jsonl", workers=workers, on_point=on_point)
    _write_results(study, settings, points, folder)


def best(points: list[Point], objective: str) -> list[int]:
    """The points that meet the SLO, best first; of equals the earlier one."""
    sign = -1.0 if describe(objective).better == "larger" else 1.0
    ranked = [
        (sign * point["metrics"][objective], point["point"])
        for point in points
        if point["status"] == "ok" and point["metrics"]["slo.met"] and point["metrics"][objective] is not None
    ]
    return [index for _, index in sorted(ranked)]


def open_study_folder(study: Study, folder: Path) -> None:
    """Make `folder` that of `study`, unless it is already.

    Raises:
        UserError: it holds something else, or another study; or it cannot be written.
    """
    text = yaml.safe_dump(study.model_dump(mode="json", exclude_none=True), sort_keys=False, allow_unicode=True)
    open_folder(folder, "study.yaml", text)


def _write_results(study: Study, settings: list[dict[str, Any]], points: list[Point], folder: Path) -> None:
    table = _points_table(study, settings, points)
    with whole_file(folder / "points.parquet") as partial:
        table.write_parquet(partial)
    winners = best(points, study.objective)[: study.winners]
    names = {f"winner-{place}": index for place, index in enumerate(winners, start=1)}
    baseline = BASELINE if points[BASELINE]["status"] == "ok" else None
    if baseline is not None:
        names["baseline"] = baseline
    shutil.rmtree(folder / "winners", ignore_errors=True)
    quality = {
        index: _write_full_run(study.scenario_of(settings[index]), folder / "winners" / name)
        for name, index in names.items()
    }
    entries = [
        {"name": name, "point": index, "parameters": settings[index], "run": f"winners/{name}"}
        for name, index in names.items()
    ]
    with whole_file(folder / "winners.json") as partial:
        partial.write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8")
    with whole_file(folder / "report.html") as partial:
        write_sweep_report(
            table,
            parameters=list(study.parameters),
            pareto=sweep_fronts(table),
            winners=winners,
            baseline=baseline,
            quality=quality,
            slo=study.scenario_of({}).slo,
            path=partial,
        )


def _write_full_run(scenario: Scenario, folder: Path) -> str | None:
    """What its pruning costs in quality, in words; null where it prunes nothing."""
    run = simulate(scenario)
    write_run(folder, run)
    return run.quality


def _points_table(study: Study, settings: list[dict[str, Any]], points: list[Point]) -> pl.DataFrame:
    """A row a point, in order: number, parameters, status, error, metrics by dotted name."""
    names = list(dict.fromkeys(name for point in points for name in point["metrics"]))
    rows = []
    for point, setting in zip(points, settings, strict=True):
        parameters: dict[str, Any] = {}
        with suppress(UserError):  # a setting that makes no scenario shows what it set itself
            parameters = study.scenario_of(setting).resolved()
        rows.append(
            {"point": point["point"]}
            | {key: table_cell(setting.get(key, lookup(parameters, key))) for key in study.parameters}
            | {"status": point["status"], "error": point["error"]}
            | {name: point["metrics"].get(name) for name in names}
        )
    return pl.DataFrame(rows, infer_schema_length=None, strict=False)
