"""Which pruning a scenario or study has, so that each is measured once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ground.errors import UserError
from ground.spec import read_yaml
from sim.engine.pruning.settings import PruningSettings
from sim.study.scenario import Scenario, load_scenario, scenario_of
from sim.study.search.space import Choice, Space
from sim.study.search.study import load_search
from sim.study.study import load_study

_PRUNING = "engine.pruning"


@dataclass(frozen=True)
class PrunedModel:
    """A model, and all the ways in which a study prunes it."""

    model: str
    policies: list[PruningSettings]


def pruned_model(path: Path) -> PrunedModel:
    """That of the scenario, sweep or search in the file `path`.

    A search is measured at every setting of its keys of `engine.pruning`; what else it varies changes no quality.

    Raises:
        UserError: the file is none of them, prunes nothing or more than one model, or draws its pruning from a range.
    """
    models: dict[str, None] = {}
    policies: dict[str, PruningSettings] = {}
    for scenario in _scenarios(path):
        if (pruning := scenario.engine.pruning) is not None:
            models[scenario.model] = None
            policies[str(pruning.without_shares())] = pruning
    if not policies:
        raise UserError(f"{path}: prunes nothing; expected {_PRUNING} in a scenario, or varied by a study")
    if len(models) > 1:
        raise UserError(f"{path}: prunes {', '.join(models)}; expected one model, whose quality is measured")
    return PrunedModel(next(iter(models)), list(policies.values()))


def _scenarios(path: Path) -> Iterator[Scenario]:
    """Those whose pruning differs, and perhaps others; settings that make no scenario are left out."""
    data = read_yaml(path)
    if "objectives" in data:
        study = load_search(path)
        yield from _made(study.scenario, [study.baseline, *_pruning_settings(study.space, path)])
    elif "parameters" in data:
        swept = load_study(path)
        yield from _made(swept.scenario, swept.settings())
    else:
        yield load_scenario(path)


def _pruning_settings(space: Space, path: Path) -> Iterator[dict[str, Any]]:
    pruning = {key: parameter for key, parameter in space if key == _PRUNING or key.startswith(f"{_PRUNING}.")}
    for key, parameter in pruning.items():
        if not isinstance(parameter, Choice):
            raise UserError(f"{path}: parameters.{key} is a range; expected values, of which each can be measured")
    if pruning:
        yield from Space(parameters={key: list(parameter.values) for key, parameter in pruning.items()}).settings()  # type: ignore[union-attr]


def _made(scenario: dict[str, Any], settings: list[dict[str, Any]]) -> Iterator[Scenario]:
    for setting in settings:
        try:
            yield scenario_of(scenario, setting)
        except UserError:
            continue  # the study itself says what is wrong with it
