"""The synthetic trace as a user writes it in YAML."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import PositiveFloat, PositiveInt, ValidationError, model_validator

from ground.errors import UserError
from traces.synth.arrivals import Arrivals
from traces.synth.lengths import Count
from traces.synth.model import Spec
from traces.synth.prefixes import Prefixes
from traces.synth.resample import Resample
from traces.synth.sessions import Sessions


class Lengths(Spec):
    """Prompt and output drawn independently of each other, or pairs resampled from a trace."""

    prompt: Count | None = None  # new tokens; a shared prefix and earlier turns come on top
    output: Count | None = None
    resample: Resample | None = None

    @model_validator(mode="after")
    def _one_way(self) -> Lengths:
        drawn = self.prompt is not None and self.output is not None
        either = self.prompt is not None or self.output is not None
        if not drawn and self.resample is None:
            raise ValueError("give prompt and output, or resample")
        if either and self.resample is not None:
            raise ValueError("give prompt and output, or resample, not both")
        return self


class SynthSpec(Spec):
    """`requests` and `duration` bound the trace; with both, whichever comes first."""

    requests: PositiveInt | None = None
    duration: PositiveFloat | None = None  # seconds within which requests (or sessions) begin
    arrivals: Arrivals
    lengths: Lengths
    prefixes: Prefixes | None = None
    sessions: Sessions | None = None
    block_tokens: PositiveInt = 16  # tokens of a prefix id

    @model_validator(mode="after")
    def _bounded(self) -> SynthSpec:
        if self.requests is None and self.duration is None:
            raise ValueError("give requests, duration or both")
        return self


def load_spec(path: Path) -> SynthSpec:
    """Read a spec from a YAML file.

    Raises:
        UserError: the file cannot be read, is no YAML mapping, or has a wrong key, type or value; names the key.
    """
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not YAML ({' '.join(str(error).split())})") from error
    if not isinstance(data, dict):
        raise UserError(f"{path}: found {type(data).__name__}, expected a mapping with requests, arrivals, lengths")
    try:
        return SynthSpec.model_validate(data)
    except ValidationError as error:
        raise UserError(f"{path}: {_first_problem(error, data)}") from error


def _first_problem(error: ValidationError, data: dict[str, Any]) -> str:
    """The first problem as `key.key: what`, without the union tags that pydantic puts between the keys."""
    problem = error.errors(include_url=False)[0]
    keys: list[str] = []
    here: Any = data
    for key in problem["loc"]:
        if isinstance(here, dict) and key in here:
            here = here[key]
            keys.append(str(key))
    if problem["type"] == "missing":
        keys.append(str(problem["loc"][-1]))
    if problem["type"] == "extra_forbidden":
        return f"unknown key {'.'.join(keys)!r}"
    text = problem["msg"].removeprefix("Value error, ")
    found = "" if isinstance(problem["input"], dict) else f", found {problem['input']!r}"
    return f"{'.'.join(keys) or 'the spec'}: {text}{found}"
