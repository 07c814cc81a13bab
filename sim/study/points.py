"""Variants of a scenario, each simulated in a process of its own, every finished one durable at once."""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from ground.errors import UserError
from sim.results.metric_names import flatten
from sim.study.scenario import scenario_of
from sim.study.simulate import simulate
from sim.study.workers import call_each

Point = dict[str, Any]


def run_points(
    scenario: dict[str, Any],
    settings: Sequence[dict[str, Any]],
    log: Path,
    *,
    workers: int = 1,
    on_point: Callable[[Point], None] = lambda _: None,
) -> list[Point]:
    """Simulate the scenario under each of `settings` that `log` does not hold yet; all points, in their order.

    `log` gets one finished point a line, in the order in which they finished. Killed at any moment, the same call goes
    on where it was; with more settings behind those of the last call it does only these. The result does not depend on
    `workers`. `on_point` is told of every finished point, also of those found.

    Raises:
        UserError: the log is damaged, or a worker was killed.
    """
    done = {point["point"]: point for point in _read_points(log)}
    for point in done.values():
        on_point(point)
    missing = [index for index in range(len(settings)) if index not in done]
    with log.open("a", encoding="utf-8") as file, closing(_run(scenario, settings, missing, workers)) as points:
        for point in points:
            file.write(json.dumps(point, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
            done[point["point"]] = point
            on_point(point)
    return [done[index] for index in range(len(settings))]


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


def _run(
    scenario: dict[str, Any], settings: Sequence[dict[str, Any]], missing: list[int], workers: int
) -> Generator[Point, None, None]:
    """Yields points as they finish."""
    arguments = [(scenario, index, settings[index]) for index in missing]
    if workers == 1 or len(missing) < 2:
        return (run_point(*each) for each in arguments)
    return call_each(run_point, arguments, workers)


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
