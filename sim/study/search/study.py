"""What a search is told: a scenario, what may vary, what is wanted, and how much may be spent on it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator, model_validator

from ground.errors import UserError
from ground.spec import Spec, check_spec
from sim.study.scenario import Scenario, lookup, scenario_of, with_absolute_paths
from sim.study.search.objectives import Constraint, Objective, parse_constraint, parse_objective
from sim.study.search.sampler import Method
from sim.study.search.space import Choice, Parameter, Space
from sim.study.study import absolute_setting, known_key, read_study


class StopEarly(Spec):
    """Successive halving (Jamieson and Talwalkar 2016) of each batch over growing parts of the trace."""

    parts: list[float] = Field(default=[0.2], min_length=1, description="rising shares of the requests, before all")
    keep: float = Field(default=0.5, gt=0, lt=1, description="share of a batch that goes on after each part")
    audit: int = Field(default=0, ge=0, description="stopped points that are simulated whole at the end, to see")

    @field_validator("parts")
    @classmethod
    def _rise(cls, parts: list[float]) -> list[float]:
        if any(not 0 < part < 1 for part in parts) or parts != sorted(set(parts)):
            raise ValueError(f"parts are {parts}; expected rising shares between 0 and 1")
        return parts


class SearchStudy(Spec):
    """Point 0 is the baseline; the others are the settings of `parameters` that the method tries."""

    scenario: dict[str, Any]
    objectives: list[str] = Field(min_length=1, description="min or max and a metric; several make a Pareto front")
    constraints: list[str] | None = Field(
        default=None, description="metric <= or >= number; by default the SLO's attainment"
    )
    parameters: dict[str, Parameter] = Field(min_length=1)
    baseline: dict[str, Any] = Field(default={}, description="dotted keys: the setting to compare with")
    method: Method = Field(default="tpe", description="what proposes settings")
    points: int = Field(gt=0, description="settings to try; a space with no more is tried whole")
    batch: int = Field(default=8, gt=0, description="settings that are proposed before any of them is answered")
    seeds: int = Field(default=3, gt=0, description="seeds of every point, from the scenario's on; as many new ones")
    traces: list[dict[str, Any]] = Field(default=[], description="each as a scenario's trace; the scenario's if none")
    stop_early: StopEarly | None = Field(default=None, description="every point is simulated whole if not given")
    winners: int = Field(default=3, gt=0)
    confidence: float = Field(default=0.95, gt=0, lt=1, description="of every interval")
    seed: int = Field(default=0, ge=0, description="of the method's draws")

    @field_validator("objectives")
    @classmethod
    def _objectives_are_known(cls, texts: list[str]) -> list[str]:
        _each(parse_objective, texts)
        metrics = [parse_objective(text).metric for text in texts]
        if len(set(metrics)) < len(metrics):
            raise ValueError(f"objectives are {texts}; expected each metric once")
        return texts

    @field_validator("constraints")
    @classmethod
    def _constraints_are_known(cls, texts: list[str] | None) -> list[str] | None:
        _each(parse_constraint, texts or [])
        return texts

    @model_validator(mode="after")
    def _seeds_belong_to_the_search(self) -> SearchStudy:
        Space(parameters=self.parameters)
        for part in ("parameters", "baseline"):
            if "seed" in getattr(self, part):
                raise ValueError(f"{part}.seed: is set by seeds; expected other keys")
            if self.traces and "trace" in getattr(self, part):
                raise ValueError(f"{part}.trace: is set by traces; expected other keys")
        return self

    @property
    def space(self) -> Space:
        return Space(parameters=self.parameters)

    @property
    def wanted(self) -> tuple[Objective, ...]:
        return tuple(parse_objective(text) for text in self.objectives)

    @property
    def limits(self) -> tuple[Constraint, ...]:
        """The constraints that were given, or that so many requests keep the scenario's SLO as it says."""
        if self.constraints is not None:
            return tuple(parse_constraint(text) for text in self.constraints)
        return (Constraint("slo.attainment", ">=", self.scenario_of({}).slo.attainment),)

    @property
    def parts(self) -> list[float]:
        """Shares of the trace that are simulated before the whole."""
        return self.stop_early.parts if self.stop_early is not None else []

    def kept(self, count: int) -> int:
        """How many of so many points go on after a part."""
        return max(1, math.ceil(count * self.stop_early.keep - 1e-9)) if self.stop_early is not None else count

    def cells(self, *, fresh: bool = False) -> list[list[dict[str, Any]]]:
        """What stands for chance: for each seed one setting a trace. With `fresh` the seeds that no search has seen."""
        first = int(lookup(self.scenario, "seed") or 0) + (self.seeds if fresh else 0)
        traces = [{"trace": trace} for trace in self.traces] or [{}]
        return [[{"seed": seed, **trace} for trace in traces] for seed in range(first, first + self.seeds)]

    def scenario_of(self, setting: dict[str, Any]) -> Scenario:
        """Raises UserError: the setting makes no valid scenario; names the key."""
        return scenario_of(self.scenario, setting)


def load_search(path: Path) -> SearchStudy:
    """Read a search. `scenario` in it is a mapping, or the path of a scenario file beside it.

    Raises:
        UserError: a file cannot be read, or a key, type or value is wrong; names the key.
    """
    data = read_study(path)
    study = check_spec(SearchStudy, data, str(path))
    for part in ("parameters", "baseline"):
        for key in getattr(study, part):
            if not known_key(key):
                raise UserError(f"{path}: {part}.{key}: no such key in a scenario")
    traces = [with_absolute_paths({"trace": trace}, path.parent)["trace"] for trace in study.traces]
    for place, trace in enumerate(traces):
        check_spec(Scenario, {**study.scenario, "trace": trace}, f"{path}: traces.{place}")
    return study.model_copy(
        update={
            "traces": traces,
            "parameters": {key: _absolute(key, given, path.parent) for key, given in study.parameters.items()},
            "baseline": absolute_setting(study.baseline, path.parent),
        }
    )


def _absolute(key: str, given: Any, base_dir: Path) -> Any:
    if isinstance(given, list):
        return [absolute_setting({key: value}, base_dir)[key] for value in given]
    when = {
        other: _absolute(other, allowed if isinstance(allowed, list) else [allowed], base_dir)
        for other, allowed in given.when.items()
    }
    if isinstance(given, Choice):
        return given.model_copy(update={"values": _absolute(key, given.values, base_dir), "when": when})
    return given.model_copy(update={"when": when})


def _each(parse: Any, texts: Sequence[str]) -> None:
    for text in texts:
        try:
            parse(text)
        except UserError as error:
            raise ValueError(error.message) from error
