"""What would help: every remedy that applies to a scenario, alone and in pairs, simulated and ranked."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import yaml

from ground.errors import UserError
from ground.folder import open_folder
from ground.whole_file import whole_file
from sim.results.metric_names import describe
from sim.study.points import Point, run_points
from sim.study.remedies import Settings, applicable
from sim.study.scenario import scenario_of
from sim.study.workers import Workers

# What is shown beside the objective. The first memory figure that a run has is shown.
LATENCY = ("e2e.p50", "e2e.p99")
THROUGHPUT = ("throughput.output_tokens",)
MEMORY = ("memory.reserved_peak", "kv.peak")
PAIRED = 4  # the best remedies alone, of which every two are tried together


@dataclass(frozen=True)
class Trial:
    """The scenario with some remedies; `metrics` is empty where it failed with `error`."""

    remedies: tuple[str, ...]
    settings: Settings
    metrics: dict[str, float | None]
    error: str | None


@dataclass(frozen=True)
class WhatIf:
    """`alone` and `pairs` are ranked by the objective, best first; failed ones come last."""

    objective: str
    baseline: Trial
    alone: list[Trial]
    pairs: list[Trial]

    def gain(self, trial: Trial, metric: str) -> float | None:
        """By how much a trial is better than the baseline, as a share of the baseline's size; negative: worse. Null
        where one of them is not known, or the baseline is 0."""
        before, after = self.baseline.metrics.get(metric), trial.metrics.get(metric)
        if not before or after is None:
            return None
        change = (after - before) / abs(before)
        return change if describe(metric).better == "larger" else -change

    @property
    def memory(self) -> str:
        return next((name for name in MEMORY if self.baseline.metrics.get(name) is not None), MEMORY[-1])

    @property
    def shown(self) -> list[str]:
        return list(dict.fromkeys((self.objective, *LATENCY, *THROUGHPUT, self.memory)))


def what_if(
    scenario: dict[str, Any],
    folder: Path,
    *,
    objective: str = "e2e.p99",
    workers: Workers | None = None,
    on_point: Callable[[Point, int], None] = lambda point, total: None,
) -> WhatIf:
    """Try the remedies on a scenario (plain data, with absolute paths); `folder` holds what was simulated already.

    Every remedy is tried alone; of the `PAIRED` that gain most, every two together. `on_point` is told of every
    finished point and how many there are so far. Killed, the same call goes on.

    Raises:
        UserError: the scenario is wrong or fails as it stands, no metric is called `objective`, or the folder holds
            something else, such as the trials of other remedies.
    """
    open_what_if_folder(scenario, folder, objective)
    remedies = applicable(scenario_of(scenario, {}))
    log = folder / "points.jsonl"
    names: list[tuple[str, ...]] = [(), *((remedy.name,) for remedy, _ in remedies)]
    settings: list[Settings] = [{}, *(keys for _, keys in remedies)]

    def run() -> list[Trial]:
        told = lambda point: on_point(point, len(settings))  # noqa: E731
        points = run_points(scenario, settings, log, workers=workers, on_point=told)
        return [
            Trial(name, setting, point["metrics"], point["error"])
            for name, setting, point in zip(names, settings, points, strict=True)
        ]

    baseline, *alone = run()
    if baseline.error is not None:
        raise UserError(f"the scenario as it stands fails: {baseline.error}")
    found = WhatIf(objective, baseline, alone, [])
    best = [trial for trial in _ranked(found, alone) if (found.gain(trial, objective) or 0.0) > 0.0][:PAIRED]
    for one, other in combinations(best, 2):
        if all(other.settings.get(key, value) == value for key, value in one.settings.items()):
            names.append((*one.remedies, *other.remedies))
            settings.append({**one.settings, **other.settings})
    _remember(folder, "pairs.yaml", _trials_as_text(names[1 + len(alone) :], settings[1 + len(alone) :]))
    pairs = run()[1 + len(alone) :]
    found = WhatIf(objective, baseline, _ranked(found, alone), _ranked(found, pairs))
    (folder / "what-if.json").write_text(
        json.dumps(_as_json(found), indent=2, allow_nan=False) + "\n", encoding="utf-8"
    )
    return found


def open_what_if_folder(scenario: dict[str, Any], folder: Path, objective: str) -> None:
    """Make `folder` that of these trials, unless it is already. `what-if.yaml` in it names the remedies and what each
    of them sets: the log of points knows them by their place in this list only.

    Raises:
        UserError: it holds something else; no metric is called `objective`, or it cannot be improved.
    """
    if describe(objective).better == "neither":
        raise UserError(f"objective {objective}: is neither better large nor small, expected a metric to improve")
    remedies = applicable(scenario_of(scenario, {}))
    trials = _trials_as_text([(remedy.name,) for remedy, _ in remedies], [keys for _, keys in remedies])
    text = yaml.safe_dump({"objective": objective, "scenario": scenario}, sort_keys=False, allow_unicode=True)
    open_folder(folder, "what-if.yaml", text + trials)


def _trials_as_text(names: Sequence[tuple[str, ...]], settings: Sequence[Settings]) -> str:
    trials = [{"remedies": list(name), "settings": keys} for name, keys in zip(names, settings, strict=True)]
    return yaml.safe_dump({"trials": trials}, sort_keys=False, allow_unicode=True)


def _remember(folder: Path, name: str, text: str) -> None:
    """Write what the points that follow are, or see that those in the log are the same.

    Raises:
        UserError: they are not.
    """
    path = folder / name
    if path.is_file():
        if path.read_text(encoding="utf-8") != text:
            raise UserError(f"{folder}: holds another what-if, with other {path.stem}; choose another folder")
        return
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def _ranked(found: WhatIf, trials: Sequence[Trial]) -> list[Trial]:
    def place(trial: Trial) -> float:
        gain = found.gain(trial, found.objective)
        return float("inf") if gain is None else -gain

    return sorted(trials, key=place)


def _as_json(found: WhatIf) -> dict[str, Any]:
    def entry(trial: Trial) -> dict[str, Any]:
        return {
            "remedies": list(trial.remedies),
            "settings": trial.settings,
            "error": trial.error,
            "gains": {name: found.gain(trial, name) for name in found.shown},
            "metrics": trial.metrics,
        }

    return {
        "objective": found.objective,
        "baseline": entry(found.baseline),
        "alone": [entry(trial) for trial in found.alone],
        "pairs": [entry(trial) for trial in found.pairs],
    }
