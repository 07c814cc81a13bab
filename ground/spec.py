"""What a user writes in YAML: read safely, checked strictly, and every mistake said in one line with its key."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from ground.errors import UserError


class Spec(BaseModel):
    """Base of every such part: unknown keys are refused, and it does not change once made."""

    # allow_inf_nan: a YAML `.nan` or `.inf` passes comparisons such as gt=0 in one way or another; no key means it.
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


AnySpec = TypeVar("AnySpec", bound=BaseModel)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        UserError: the file cannot be read, or is no YAML mapping.
    """
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not YAML ({' '.join(str(error).split())})") from error
    if not isinstance(data, dict):
        raise UserError(f"{path}: found {type(data).__name__}, expected a mapping of keys")
    return data


def check_spec(kind: type[AnySpec], data: dict[str, Any], source: str) -> AnySpec:
    """`data` as a spec of that kind.

    Raises:
        UserError: a wrong key, type or value; names `source` and the key.
    """
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise UserError(f"{source}: {_first_problem(error, data)}") from error


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
    return f"{'.'.join(keys) or 'the whole'}: {text}{found}"
