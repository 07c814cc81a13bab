"""The winners of a sweep and its baseline, and which of their replays are still to be done."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ground.errors import UserError
from sim.results.folder import Run, read_run
from sim.study.scenario import Scenario, load_scenario
from validate.measure import is_measured, read_measurement
from validate.validation import Policy, Validation, worst

_BASELINE = "baseline"
_OF_ONE_REPLAY = ("steps", "graph_steps", "step_seconds", "forward_seconds")


@dataclass(frozen=True)
class Candidate:
    """One policy of a sweep: what it sets, and what the simulator predicts of it."""

    name: str
    parameters: dict[str, Any]
    scenario: Scenario
    predicted: Run


@dataclass(frozen=True)
class Replay:
    """One repeat of one policy, and the folder of its measured run."""

    candidate: Candidate
    repeat: int
    folder: Path


def candidates(sweep: Path, top: int | None = None) -> list[Candidate]:
    """The best `top` winners of a sweep (all, if null), then its baseline.

    Raises:
        UserError: `sweep` is not the folder of a finished sweep, or it has neither winners nor baseline.
    """
    if not sweep.is_dir():
        raise UserError(f"{sweep}: no such folder; expected the output folder of simctl sweep")
    path = sweep / "winners.json"
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        listed = [(str(entry["name"]), dict(entry["parameters"]), sweep / entry["run"]) for entry in entries]
    except FileNotFoundError as error:
        raise UserError(f"{path}: is missing; expected the folder of a finished sweep") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: is not a list of name, parameters and run ({type(error).__name__})") from error
    chosen = [entry for entry in listed if entry[0] != _BASELINE][:top]
    chosen += [entry for entry in listed if entry[0] == _BASELINE]
    if not chosen:
        raise UserError(f"{path}: is empty; expected a winner or a baseline to validate")
    return [
        Candidate(name, parameters, load_scenario(run / "scenario.yaml"), read_run(run))
        for name, parameters, run in chosen
    ]


def plan(chosen: Sequence[Candidate], repeats: int, output: Path) -> list[Replay]:
    """Policies in turn, over and over, so that a drift of the machine hits all alike."""
    return [
        Replay(candidate, repeat, output / "measured" / candidate.name / f"repeat-{repeat}")
        for repeat in range(1, repeats + 1)
        for candidate in chosen
    ]


def unfinished(replays: Sequence[Replay], settings: Mapping[str, Any]) -> list[Replay]:
    """The replays still to be measured; `settings` are facts of the engine (device, threads) that all must share.

    Raises:
        UserError: a finished replay is of another scenario or was measured with other settings.
    """
    missing = []
    for replay in replays:
        if not is_measured(replay.folder):
            missing.append(replay)
            continue
        engine, _, _ = read_measurement(replay.folder)
        for key, wanted in settings.items():
            if engine.get(key) != wanted:
                raise UserError(
                    f"{replay.folder}: was measured with {key} {engine.get(key)}, now it is {wanted}; "
                    "expected the same, or another folder by -o"
                )
        if read_run(replay.folder).scenario != replay.candidate.scenario.resolved():
            raise UserError(f"{replay.folder}: was measured with another scenario; expected another folder by -o")
    return missing


def collect(chosen: Sequence[Candidate], replays: Sequence[Replay]) -> Validation:
    """The validation of finished replays."""
    measurements = [read_measurement(replay.folder) for replay in replays]
    facts = measurements[0][0].items()
    return Validation(
        policies=[
            Policy(
                candidate.name,
                candidate.predicted,
                [read_run(replay.folder) for replay in replays if replay.candidate is candidate],
                candidate.parameters,
            )
            for candidate in chosen
        ],
        engine={key: value for key, value in facts if key not in _OF_ONE_REPLAY},
        lateness=worst([lateness for _, lateness, _ in measurements]),
    )
