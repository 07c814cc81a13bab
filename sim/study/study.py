"""A study: one scenario, and which of its keys to vary how."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from ground.errors import UserError
from ground.spec import Spec, check_spec, read_yaml
from sim.results.metric_names import describe
from sim.study.scenario import Scenario, lookup, make_scenario, override, scenario_of, with_absolute_paths
from traces.streams import stream


class Range(Spec):
    """The interval low ≤ x < high to draw from; `log` draws the logarithm uniformly, `integer` rounds down."""

    low: float
    high: float
    log: bool = False
    integer: bool = False

    @model_validator(mode="after")
    def _ordered(self) -> Range:
        if self.low >= self.high:
            raise ValueError(f"low is {self.low:g} and high {self.high:g}, expected low < high")
        if self.integer and not (self.low.is_integer() and self.high.is_integer()):
            raise ValueError(f"low is {self.low:g} and high {self.high:g}, expected whole numbers with integer")
        if self.log and self.low <= 0:
            raise ValueError(f"low is {self.low:g}, expected more than 0 with log")
        return self

    def draw(self, random: np.random.Generator) -> float | int:
        share = random.random()
        if self.log:
            value = self.low * (self.high / self.low) ** share
        else:
            value = self.low + share * (self.high - self.low)
        return math.floor(value) if self.integer else value


# Told apart by their kind, so that a mistake in a range is not reported as a list that is none.
Values = Annotated[
    Annotated[list[Any], Tag("list")] | Annotated[Range, Tag("range")],
    Discriminator(lambda values: "list" if isinstance(values, list) else "range"),
]


class Study(Spec):
    """`grid` takes every combination of the listed values; `random` draws `points` of them."""

    scenario: dict[str, Any]
    method: Literal["grid", "random"] = "grid"
    parameters: dict[str, Values] = Field(min_length=1)
    points: int | None = Field(default=None, gt=0)
    baseline: dict[str, Any] = Field(default_factory=dict)  # dotted keys: the setting to compare with
    objective: str = "goodput.requests"
    winners: int = Field(default=3, gt=0)
    seed: int = Field(default=0, ge=0)

    @field_validator("objective")
    @classmethod
    def _known_objective(cls, name: str) -> str:
        try:
            better = describe(name).better
        except UserError as error:
            raise ValueError(error.message) from error
        if better == "neither":
            raise ValueError(f"{name} is neither better large nor small, expected a metric to improve")
        return name

    @model_validator(mode="after")
    def _method_fits(self) -> Study:
        if self.method == "random" and self.points is None:
            raise ValueError("method random needs points, the number of points to draw")
        if self.method == "grid":
            if self.points is not None:
                raise ValueError("points belongs to method random; a grid has as many as its lists make")
            for key, values in self.parameters.items():
                if isinstance(values, Range):
                    raise ValueError(f"parameters.{key}: a grid needs a list of values, not a range")
        for key, values in self.parameters.items():
            if not isinstance(values, Range) and not values:
                raise ValueError(f"parameters.{key}: the list is empty")
        return self

    def settings(self) -> list[dict[str, Any]]:
        """The dotted keys that each point sets; point 0 is the baseline."""
        return [self.baseline, *(self._grid() if self.method == "grid" else self._random())]

    def scenario_of(self, setting: dict[str, Any]) -> Scenario:
        """Raises UserError: the setting makes no valid scenario; names the key."""
        return scenario_of(self.scenario, setting)

    def _grid(self) -> list[dict[str, Any]]:
        values = [values for values in self.parameters.values() if not isinstance(values, Range)]
        return [dict(zip(self.parameters, point, strict=True)) for point in itertools.product(*values)]

    def _random(self) -> list[dict[str, Any]]:
        streams = {key: stream(self.seed, key) for key in self.parameters}
        return [
            {
                key: values.draw(streams[key])
                if isinstance(values, Range)
                else values[int(streams[key].integers(len(values)))]
                for key, values in self.parameters.items()
            }
            for _ in range(self.points or 0)
        ]


def load_study(path: Path) -> Study:
    """Read a study. `scenario` in it is a mapping, or the path of a scenario file beside it.

    Raises:
        UserError: a file cannot be read, or a key, type or value is wrong; names the key.
    """
    study = check_spec(Study, read_study(path), str(path))
    for part in ("parameters", "baseline"):
        for key in getattr(study, part):
            if not known_key(key):
                raise UserError(f"{path}: {part}.{key}: no such key in a scenario")
    return study.model_copy(
        update={
            "parameters": {
                key: values
                if isinstance(values, Range)
                else [absolute_setting({key: value}, path.parent)[key] for value in values]
                for key, values in study.parameters.items()
            },
            "baseline": absolute_setting(study.baseline, path.parent),
        }
    )


def read_study(path: Path) -> dict[str, Any]:
    """The YAML mapping of a study, in which `scenario` has become one that is valid and whose paths are absolute.

    Raises:
        UserError: a file cannot be read, or the scenario is wrong.
    """
    data = read_yaml(path)
    base_dir, source, scenario = path.parent, str(path), data.get("scenario")
    if isinstance(scenario, str):
        file = base_dir / scenario
        base_dir, source, scenario = file.parent, str(file), read_yaml(file)
    if not isinstance(scenario, dict):
        raise UserError(f"{path}: scenario is {scenario!r}, expected a mapping or the path of a scenario file")
    # Checked once as it stands, so that its mistakes do not show up as failures of every point. Kept as it stands too:
    # with its defaults spelled out, a point that sets engine.preset would change nothing.
    make_scenario(scenario, {}, base_dir, source)
    return {**data, "scenario": with_absolute_paths(scenario, base_dir)}


def absolute_setting(setting: dict[str, Any], base_dir: Path) -> dict[str, Any]:
    """Dotted keys whose paths no longer depend on where they are read."""
    return {
        key: lookup(with_absolute_paths(override({}, {key: value}, ""), base_dir), key)
        for key, value in setting.items()
    }


def known_key(key: str) -> bool:
    """Whether the dotted key's first parts name fields of a scenario; what lies deeper is checked a point at a time."""
    kind: Any = Scenario
    for part in key.split("."):
        fields = getattr(kind, "model_fields", None)
        if fields is None:
            return True
        if part not in fields:
            return False
        kind = fields[part].annotation
    return True
