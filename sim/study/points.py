"""Variants of a scenario, each simulated in a process of its own, every finished one durable at once."""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from ground.errors import UserError
from sim.results.metric_names import flatten
from sim.study.scenario import scenario_of
from sim.study.simulate import simulate
from sim.study.workers import LocalWorkers, Workers

Point = dict[str, Any]


class Points:
    """Points of one scenario, numbered in the order in which they are asked for; those that `log` holds are not
    simulated again.

    `log` gets one finished point a line, in the order in which they finished. Killed at any moment, whoever asks for
    the same points goes on where it was. Nothing depends on `workers`. `on_point` is told of every finished point
    that was asked for, also of those found.
    """

    def __init__(
        self,
        scenario: dict[str, Any],
        log: Path,
        *,
        workers: Workers | None = None,
        on_point: Callable[[Point], None] = lambda _: None,
    ) -> None:
        """Raises UserError: the log is damaged."""
        self._scenario = scenario
        self._log = log
        self._workers = workers or LocalWorkers()
        self._on_point = on_point
        self._found = {point["point"]: point for point in _read_points(log)}
        self._asked = 0

    def run(self, settings: Sequence[dict[str, Any]]) -> list[Point]:
        """The scenario under each of `settings`, in their order; they are numbered behind those asked for before.

        Raises:
            UserError: a worker was killed, or the log holds other settings under these numbers.
        """
        first, self._asked = self._asked, self._asked + len(settings)
        asked = range(first, self._asked)
        for index, point in self._found.items():
            if index in asked:
                self._check_same(point, settings[index - first])
                self._on_point(point)
        missing = [(self._scenario, index, settings[index - first]) for index in asked if index not in self._found]
        with (
            self._log.open("a", encoding="utf-8") as file,
            closing(self._workers.each(run_point, missing)) as points,
        ):
            for point in points:
                point["setting"] = _plain(settings[point["point"] - first])
                file.write(json.dumps(point, allow_nan=False) + "\n")
                file.flush()
                os.fsync(file.fileno())
                self._found[point["point"]] = point
                self._on_point(point)
        return [self._found[index] for index in asked]

    def _check_same(self, point: Point, setting: dict[str, Any]) -> None:
        if point.get("setting") != _plain(setting):
            raise UserError(
                f"{self._log}: point {point['point']} was simulated with {point.get('setting')}, now it has {setting}; "
                "expected what wrote it to go on with it, or another folder"
            )


def run_points(
    scenario: dict[str, Any],
    settings: Sequence[dict[str, Any]],
    log: Path,
    *,
    workers: Workers | None = None,
    on_point: Callable[[Point], None] = lambda _: None,
) -> list[Point]:
    """Simulate the scenario under each of `settings` that `log` does not hold yet; all points, in their order.

    With more settings behind those of the last call it does only these (`Points`).

    Raises:
        UserError: the log is damaged, or a worker was killed.
    """
    return Points(scenario, log, workers=workers, on_point=on_point).run(settings)


def run_point(scenario: dict[str, Any], index: int, setting: dict[str, Any]) -> Point:
    """One point: its number, the metrics of its run by dotted name, or the error that it failed with."""
    try:
        metrics = flatten(simulate(scenario_of(scenario, setting)).metrics)
    except UserError as error:
        return {"point": index, "status": "failed", "error": error.message, "metrics": {}}
    except Exception as error:  # one bad point must not end all; what went wrong is kept with it
        return {"point": index, "status": "failed", "error": f"{type(error).__name__}: {error}", "metrics": {}}
    # The parts of a fleet refer to each other: few objects, for which Python would not look soon, and much memory.
    gc.collect(1)
    return {"point": index, "status": "ok", "error": None, "metrics": metrics}


def table_cell(value: Any) -> Any:
    """A value of a setting in a table of points. Mappings are text: as they are, a column would give each the keys of
    all."""
    return json.dumps(value, default=str) if isinstance(value, dict) else value


def _plain(setting: dict[str, Any]) -> Any:
    """As JSON gives it back, whatever YAML made of it: a date or a NaN is text."""
    return json.loads(json.dumps(setting, default=str), parse_constant=str)


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
