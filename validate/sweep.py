"""The winners of sweeps and searches and their baselines, and which of their replays are still to be done."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calibrate.model import load_model
from calibrate.quality import PolicyQuality, read_quality
from ground.errors import UserError
from ground.spec import read_yaml
from sim.results.folder import Run, read_run
from sim.results.metric_names import describe
from sim.study.deployment import deploy
from sim.study.scenario import Scenario, load_scenario, lookup
from sim.study.study import Study
from validate.copies import copies_of
from validate.gains import BASELINE
from validate.measure import is_measured, read_measurement
from validate.validation import Policy, Validation, worst

_OF_ONE_REPLAY = ("steps", "graph_steps", "step_seconds", "forward_seconds")


@dataclass(frozen=True, eq=False)
class Candidate:
    """One policy of a study: what it sets, and what the simulator predicts of it.

    `objective` is the metric by which the study chose; `quality` what was measured of a pruned model.
    """

    study: str
    name: str
    parameters: dict[str, Any]
    scenario: Scenario
    predicted: Run
    objective: str
    quality: PolicyQuality | None

    @property
    def pruning(self) -> dict[str, Any]:
        """What of the model is left out, every default spelled out; empty where nothing is."""
        pruning: dict[str, Any] = lookup(self.scenario.resolved(), "engine.pruning") or {}
        return pruning


@dataclass(frozen=True, eq=False)
class Replay:
    """One repeat of one policy, and the folder of its measured run."""

    candidate: Candidate
    repeat: int
    folder: Path


def study_folders(studies: Sequence[Path], output: Path | None) -> dict[str, tuple[Path, Path]]:
    """Of each study by its name: its folder, and the one for its result. Of several the result is a folder of `output`.

    Raises:
        UserError: there are several and no `output`, or they cannot be told apart by their names.
    """
    if len(studies) == 1:
        return {studies[0].resolve().name: (studies[0], output or studies[0] / "validation")}
    if output is None:
        raise UserError(f"{len(studies)} studies are given; expected -o, a folder for their common result")
    names = [study.resolve().name for study in studies]
    if len(set(names)) < len(names):
        names = ["-".join(study.resolve().parts[-2:]) for study in studies]
    if len(set(names)) < len(names):
        raise UserError(f"{', '.join(map(str, studies))}: two have the same name; expected names that tell them apart")
    return {name: (study, output / name) for name, study in zip(names, studies, strict=True)}


def candidates(folder: Path, name: str, top: int | None = None, quality: Path | None = None) -> list[Candidate]:
    """The best `top` winners of a sweep or search called `name` (all, if null), then its baseline.

    What pruning costs is looked up in the file `quality`, else in the one that the scenario names.

    Raises:
        UserError: `folder` is not that of a finished study, it has neither winners nor baseline, or the file of
            qualities cannot be read.
    """
    usual = _objective(folder)
    found = []
    for policy, parameters, run, objective in _entries(folder, top):
        scenario = load_scenario(run / "scenario.yaml")
        # A replay measures what a run has: of a quality there is no measured gain.
        compared = usual if objective is None or objective.startswith("quality.") else objective
        describe(compared)
        cost = measured_quality(scenario, quality)
        found.append(Candidate(name, policy, parameters, scenario, read_run(run), compared, cost))
    return found


def _entries(folder: Path, top: int | None) -> list[tuple[str, dict[str, Any], Path, str | None]]:
    """(name, parameters, folder of the run, objective where it is said) of the best `top` winners and the baseline."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; expected the output folder of simctl sweep or search")
    path = folder / "winners.json"
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        listed = [
            (str(entry["name"]), dict(entry["parameters"]), folder / entry["run"], entry.get("objective"))
            for entry in entries
        ]
    except FileNotFoundError as error:
        raise UserError(f"{path}: is missing; expected the folder of a finished sweep or search") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: is not a list of name, parameters and run ({type(error).__name__})") from error
    chosen = [entry for entry in listed if entry[0] != BASELINE][:top]
    chosen += [entry for entry in listed if entry[0] == BASELINE]
    if not chosen:
        raise UserError(f"{path}: is empty; expected a winner or a baseline to validate")
    return chosen


def measured_quality(scenario: Scenario, path: Path | None) -> PolicyQuality | None:
    """What pruning as the scenario does it was measured to cost; null where it was not, or it prunes nothing.

    Raises:
        UserError: the file `path`, or else the one that the scenario names, cannot be read.
    """
    pruning = lookup(scenario.resolved(), "engine.pruning")
    path = path or (Path(scenario.quality) if scenario.quality is not None else None)
    if not pruning or path is None:
        return None
    return read_quality(path).find(load_model(scenario.model), pruning)


def _objective(folder: Path) -> str:
    """By which metric the study in `folder` chose; a sweep's own default where it does not say."""
    path = folder / "study.yaml"
    study = read_yaml(path) if path.is_file() else {}
    return str(study.get("objective") or Study.model_fields["objective"].default)


def plan(chosen: Sequence[Candidate], repeats: int, output: Callable[[Candidate], Path]) -> list[Replay]:
    """Policies in turn, over and over, so that a drift of the machine hits all alike. `output`: a study's folder."""
    return [
        Replay(candidate, repeat, output(candidate) / "measured" / candidate.name / f"repeat-{repeat}")
        for repeat in range(1, repeats + 1)
        for candidate in chosen
    ]


def unfinished(replays: Sequence[Replay], facts: Callable[[Candidate], Mapping[str, Any]]) -> list[Replay]:
    """The replays still to be measured; `facts` of the engine (device, threads) are those that a repeat must share.

    Raises:
        UserError: a finished replay is of another scenario or was measured with other settings.
    """
    missing = []
    for replay in replays:
        if not is_measured(replay.folder):
            missing.append(replay)
            continue
        engine, _, _ = read_measurement(replay.folder)
        for key, wanted in facts(replay.candidate).items():
            if engine.get(key) != wanted:
                raise UserError(
                    f"{replay.folder}: was measured with {key} {engine.get(key)}, now it is {wanted}; "
                    "expected the same, or another folder by -o"
                )
        if read_run(replay.folder).scenario != replay.candidate.scenario.resolved():
            raise UserError(f"{replay.folder}: was measured with another scenario; expected another folder by -o")
    return missing


def collect(chosen: Sequence[Candidate], replays: Sequence[Replay], refused: Mapping[str, str]) -> Validation:
    """The validation of one study's finished replays; `refused` are the policies that were not replayed, and why."""
    kept = [candidate for candidate in chosen if candidate.name not in refused]
    finished = [replay for replay in replays if replay.candidate in kept]
    measurements = [read_measurement(replay.folder) for replay in finished]
    facts = measurements[0][0].items() if measurements else ()
    return Validation(
        policies=[_policy(candidate, finished) for candidate in kept],
        engine={key: value for key, value in facts if key not in _OF_ONE_REPLAY},
        lateness=worst([lateness for _, lateness, _ in measurements]),
        study=chosen[0].study,
        objective=chosen[0].objective,
        refused=dict(refused),
    )


def _policy(candidate: Candidate, finished: Sequence[Replay]) -> Policy:
    measured = [read_run(replay.folder) for replay in finished if replay.candidate is candidate]
    return Policy(
        candidate.name,
        candidate.predicted,
        measured,
        candidate.parameters,
        also=(candidate.objective,),
        pruned=bool(candidate.pruning),
        quality=candidate.quality,
        copies=copies_of(candidate.predicted, measured, _block_bytes(candidate.scenario)),
    )


def _block_bytes(scenario: Scenario) -> int:
    """Of a KV block, as the engine keeps it; 0 where the engine copies none."""
    if not scenario.engine.swap_blocks and scenario.engine.kv_offload is None:
        return 0
    copies = deploy(scenario).step_times.copies
    return copies.block_bytes if copies is not None else 0
