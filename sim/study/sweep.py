"""Run a study: every point in a process of its own, every finished point durable at once."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import polars as pl
import yaml

from ground.errors import UserError
from ground.folder import new_folder
from sim.results.folder import write_run
from sim.results.metric_names import describe, flatten
from sim.results.pareto import sweep_fronts
from sim.results.sweep_report import write_sweep_report
from sim.study.scenario import Scenario, lookup
from sim.study.simulate import simulate
from sim.study.study import Study
from sim.study.workers import call_each

BASELINE = 0  # the point that the study's `baseline` is
Point = dict[str, Any]


def sweep(study: Study, folder: Path, *, workers: int = 1, on_point: Callable[[Point], None] = lambda _: None) -> None:
    """Simulate every point of `study` that `folder` does not hold yet, then write its tables and report.

    `folder` gets `study.yaml`, `points.jsonl` (one finished point a line, in the order in which they finished),
    `points.parquet` (in order of point), `winners.json`, `winners/NAME/` (complete runs) and `report.html`.
    Killed at any moment, the same call goes on where it was. The result does not depend on `workers`. `on_point` is
    told of every finished point, also of those found.

    Raises:
        UserError: `folder` holds something else, or another study; or it cannot be written; or a worker was killed.
    """
    open_folder(study, folder)
    settings = study.settings()
    done = {point["point"]: point for point in _read_points(folder / "points.jsonl")}
    for point in done.values():
        on_point(point)
    missing = [index for index in range(len(settings)) if index not in done]
    with (
        (folder / "points.jsonl").open("a", encoding="utf-8") as log,
        closing(_run_points(study, settings, missing, workers)) as points,
    ):
        for point in points:
            log.write(json.dumps(point, allow_nan=False) + "\n")
            log.flush()
            os.fsync(log.fileno())
            done[point["point"]] = point
            on_point(point)
    _write_results(study, settings, [done[index] for index in range(len(settings))], folder)


def run_point(study: Study, index: int, setting: dict[str, Any]) -> Point:
    """One point: its number, the metrics of its run by dotted name, or the error that it failed with."""
    try:
        run = simulate(study.scenario_of(setting))
    except UserError as error:
        return {"point": index, "status": "failed", "error": error.message, "metrics": {}}
    except Exception as error:  # one bad point must not end the study; what went wrong is kept with it
        return {"point": index, "status": "failed", "error": f"{type(error).__name__}: {error}", "metrics": {}}
    return {"point": index, "status": "ok", "error": None, "metrics": flatten(run.metrics)}


def best(points: list[Point], objective: str) -> list[int]:
    """The points that meet the SLO, best first; of equals the earlier one."""
    sign = -1.0 if describe(objective).better == "larger" else 1.0
    ranked = [
        (sign * point["metrics"][objective], point["point"])
        for point in points
        if point["status"] == "ok" and point["metrics"]["slo.met"] and point["metrics"][objective] is not None
    ]
    return [index for _, index in sorted(ranked)]


def _run_points(
    study: Study, settings: list[dict[str, Any]], missing: list[int], workers: int
) -> Generator[Point, None, None]:
    """Yields points as they finish."""
    arguments = [(study, index, settings[index]) for index in missing]
    if workers == 1 or len(missing) < 2:
        return (run_point(*each) for each in arguments)
    return call_each(run_point, arguments, workers)


def open_folder(study: Study, folder: Path) -> None:
    """Make `folder` that of `study`, unless it is already.

    Raises:
        UserError: it holds something else, or another study; or it cannot be written.
    """
    text = yaml.safe_dump(study.model_dump(mode="json", exclude_none=True), sort_keys=False, allow_unicode=True)
    path = folder / "study.yaml"
    if path.is_file():
        if path.read_text(encoding="utf-8") != text:
            raise UserError(f"{folder}: holds another study; choose another folder for this one")
        return
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"{folder}: holds something else; expected a new folder, or that of this study")
    with new_folder(folder) as partial:
        (partial / "study.yaml").write_text(text, encoding="utf-8")


def _read_points(path: Path) -> Iterator[Point]:
    """The finished points; a last line cut short by a kill is dropped from the file."""
    if not path.is_file():
        return
    whole = 0
    with path.open("rb") as log:
        for number, line in enumerate(log, start=1):
            if not line.endswith(b"\n"):
                break
            whole += len(line)
            try:
                yield json.loads(line)
            except ValueError as error:
                raise UserError(
                    f"{path}: line {number}: {error}; remove it to have its point simulated again"
                ) from error
    os.truncate(path, whole)


def _write_results(study: Study, settings: list[dict[str, Any]], points: list[Point], folder: Path) -> None:
    table = _points_table(study, settings, points)
    temporary = folder / ".points.parquet.partial"
    table.write_parquet(temporary)
    temporary.rename(folder / "points.parquet")
    winners = best(points, study.objective)[: study.winners]
    names = {f"winner-{place}": index for place, index in enumerate(winners, start=1)}
    baseline = BASELINE if points[BASELINE]["status"] == "ok" else None
    if baseline is not None:
        names["baseline"] = baseline
    shutil.rmtree(folder / "winners", ignore_errors=True)
    for name, index in names.items():
        _write_full_run(study.scenario_of(settings[index]), folder / "winners" / name)
    entries = [
        {"name": name, "point": index, "parameters": settings[index], "run": f"winners/{name}"}
        for name, index in names.items()
    ]
    _write_text(folder / "winners.json", json.dumps(entries, indent=2) + "\n")
    partial = folder / ".report.html.partial"
    write_sweep_report(
        table,
        parameters=list(study.parameters),
        pareto=sweep_fronts(table),
        winners=winners,
        baseline=baseline,
        slo=study.scenario_of({}).slo,
        path=partial,
    )
    partial.rename(folder / "report.html")


def _write_full_run(scenario: Scenario, folder: Path) -> None:
    write_run(folder, simulate(scenario))


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
            | {key: setting.get(key, lookup(parameters, key)) for key in study.parameters}
            | {"status": point["status"], "error": point["error"]}
            | {name: point["metrics"].get(name) for name in names}
        )
    return pl.DataFrame(rows, infer_schema_length=None, strict=False)


def _write_text(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.partial")
    temporary.write_text(text, encoding="utf-8")
    temporary.rename(path)
