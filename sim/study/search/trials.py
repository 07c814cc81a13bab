"""A setting under every seed and trace of a search, on the whole trace or the beginning of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ground.errors import UserError
from sim.study.intervals import Interval, mean_interval
from sim.study.points import Point, Points
from sim.study.scenario import lookup, override
from sim.study.search.measured_quality import quality_of
from sim.study.search.objectives import Constraint, is_quality, objectives_of
from sim.study.search.space import Setting
from sim.study.search.study import SearchStudy
from sim.study.workers import Workers

Status = Literal["ok", "stopped", "failed", "refused"]
Values = dict[str, list[float | None]]


@dataclass(frozen=True)
class Trial:
    """A setting and what came of it.

    `status`: "ok" if it was simulated whole, "stopped" after `share` of the trace, "failed", or "refused" before it
    was simulated, because nobody measured its quality or that is too low. `values`: by metric, one a seed, the mean
    over the traces. `worst`: by metric of a constraint, the mean over the seeds on the trace where it is worst.
    `requests`: how many were simulated.
    """

    setting: Setting
    status: Status
    share: float
    error: str | None
    values: Values
    worst: dict[str, float | None]
    requests: int

    def mean(self, metric: str) -> float:
        """Over the seeds.

        Raises:
            KeyError: there is no such value, as of a trial that did not end well.
        """
        mean = _mean(self.values[metric])
        if mean is None:
            raise KeyError(metric)
        return mean

    def interval(self, metric: str, confidence: float) -> Interval | None:
        """Around the mean over the seeds; none where a seed has no value."""
        known = [value for value in self.values.get(metric, []) if value is not None]
        return mean_interval(known, confidence) if known and len(known) == len(self.values[metric]) else None

    def violations(self, constraints: Iterable[Constraint]) -> dict[str, float]:
        """By constraint, as a share of its limit."""
        return {str(each): each.violation(self.worst.get(each.metric)) for each in constraints}


class Trials:
    """Runs settings and keeps every finished run in `log`; whoever asks for the same again goes on where it was."""

    def __init__(
        self,
        study: SearchStudy,
        log: Path,
        *,
        workers: Workers | None = None,
        on_run: Callable[[Point], None] = lambda _: None,
    ) -> None:
        self._study = study
        self._limits = study.limits
        self._points = Points(study.scenario, log, workers=workers, on_point=on_run)

    def run(self, settings: Sequence[Setting], *, share: float = 1.0, fresh: bool = False) -> list[Trial]:
        """Each setting on the first `share` of every trace, under the search's seeds or `fresh` ones. What quality
        rules out is not simulated."""
        known = [self._quality(setting) for setting in settings]
        cells = self._study.cells(fresh=fresh)
        asked: list[Setting] = []
        for setting, quality in zip(settings, known, strict=True):
            if not isinstance(quality, Trial):
                asked += [self._cell(cell, setting, share) for row in cells for cell in row]
        points = iter(self._points.run(asked))
        return [
            quality
            if isinstance(quality, Trial)
            else self._trial(setting, quality, [[next(points) for _ in row] for row in cells], share)
            for setting, quality in zip(settings, known, strict=True)
        ]

    def _quality(self, setting: Setting) -> dict[str, float] | Trial:
        """What is known of the setting's quality, or the end of it."""
        limits = [limit for limit in self._limits if is_quality(limit.metric)]
        asked = [limit.metric for limit in limits]
        asked += [each.metric for each in self._study.wanted if is_quality(each.metric)]
        if not asked:
            return {}
        try:
            quality = quality_of(self._study.scenario_of(setting))
            missing = [name for name in asked if name not in quality]
            if missing:
                raise UserError(f"{missing[0]} of the unpruned model is not known: the scenario names no quality.json")
        except UserError as error:
            return Trial(setting, "refused", 0.0, error.message, {}, {}, 0)
        for limit in limits:
            if limit.violation(quality[limit.metric]):
                said = f"{limit.metric} is {quality[limit.metric]:.4g}, expected {limit.bound} {limit.limit:g}"
                values: Values = {name: [value] for name, value in quality.items()}
                return Trial(setting, "refused", 0.0, said, values, dict(quality), 0)
        return quality

    def _cell(self, cell: Setting, setting: Setting, share: float) -> Setting:
        whole = {**cell, **setting}
        if share == 1.0:
            return whole
        first = None
        with suppress(UserError):  # a setting that makes no scenario fails when it is run
            first = lookup(override(self._study.scenario, whole, "the scenario"), "trace.first")
        return {**whole, "trace.first": _beginning(first if isinstance(first, dict) else {}, share)}

    def _trial(self, setting: Setting, quality: dict[str, float], rows: list[list[Point]], share: float) -> Trial:
        """Of the points of each seed, one a trace."""
        every = [point for row in rows for point in row]
        error = next((point["error"] for point in every if point["status"] == "failed"), None)
        requests = sum(int(point["metrics"].get("requests.total") or 0) for point in every)
        if error is not None:
            return Trial(setting, "failed", share, error, {}, {}, requests)
        names = every[0]["metrics"]
        values: Values = {name: [_mean([point["metrics"][name] for point in row]) for row in rows] for name in names}
        worst = {limit.metric: _worst(limit, rows) for limit in self._limits if not is_quality(limit.metric)}
        values |= {name: [value] * len(rows) for name, value in quality.items()}
        means = {name: _mean(column) for name, column in values.items()}
        if objectives_of(means, self._study.wanted) is None:
            missing = next(each.metric for each in self._study.wanted if means.get(each.metric) is None)
            return Trial(setting, "failed", share, f"{missing} has no value", values, worst, requests)
        return Trial(setting, "ok", share, None, values, worst | dict(quality), requests)


def _beginning(first: dict[str, Any], share: float) -> dict[str, Any]:
    """What a scenario's `trace.first` is for a share of what it lets through."""
    if first.get("seconds") is not None:
        return {"seconds": first["seconds"] * share}
    if first.get("requests") is not None:
        return {"requests": math.ceil(first["requests"] * share)}
    return {"share": share * (first.get("share") or 1.0)}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [float(value) for value in values if value is not None]
    return math.fsum(known) / len(known) if known and len(known) == len(values) else None


def _worst(limit: Constraint, rows: list[list[Point]]) -> float | None:
    """The mean over the seeds, on the trace where it misses the limit most, or keeps to it least."""
    by_trace = [_mean([point["metrics"][limit.metric] for point in column]) for column in zip(*rows, strict=True)]
    known = [value for value in by_trace if value is not None]
    if len(known) < len(by_trace):
        return None
    return max(known) if limit.bound == "<=" else min(known)
