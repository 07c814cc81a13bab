"""A number that a run needed and was not given: what it was set to, and on whose word."""

from dataclasses import dataclass
from typing import Literal

Source = Literal["measured", "imported", "datasheet", "user", "assumed"]


@dataclass(frozen=True)
class Assumption:
    """`name` is dotted like a scenario key; `note` says where the value comes from, in words."""

    name: str
    value: float | int | str
    unit: str
    source: Source
    note: str
