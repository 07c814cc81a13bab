"""The settings that a search may try: lists and ranges, some of which exist only under others."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag, field_validator

from ground.spec import Spec
from sim.study.study import Range

When = dict[str, Any]
Setting = dict[str, Any]

_WHEN = "values of earlier parameters under which this one exists, by key: one value or a list; always if not given"


class Choice(Spec):
    """One of `values`. Rising numbers are known to be near each other, other values are not."""

    values: list[Any] = Field(min_length=1, description="what may be chosen")
    when: When = Field(default={}, description=_WHEN)

    @property
    def ordered(self) -> bool:
        numbers = [value for value in self.values if isinstance(value, int | float) and not isinstance(value, bool)]
        return len(numbers) == len(self.values) and numbers == sorted(set(numbers))


class Span(Range):
    """A range that may exist only under other values."""

    when: When = Field(default={}, description=_WHEN)


def _kind(given: Any) -> str:
    if isinstance(given, Choice) or (isinstance(given, dict) and "values" in given):
        return "choice"
    return "list" if isinstance(given, list) else "range"


# Told apart by their kind, so that a mistake in one is not reported as another that is none.
Parameter = Annotated[
    Annotated[list[Any], Tag("list")] | Annotated[Choice, Tag("choice")] | Annotated[Span, Tag("range")],
    Discriminator(_kind),
]


class Space(Spec):
    """Parameters by their dotted scenario keys, in the order in which they are chosen."""

    parameters: dict[str, Parameter] = Field(min_length=1)

    @field_validator("parameters")
    @classmethod
    def _in_order(cls, parameters: dict[str, Any]) -> dict[str, Choice | Span]:
        known: dict[str, Choice | Span] = {}
        for key, given in parameters.items():
            if given == []:
                raise ValueError(f"parameters.{key}: the list is empty")
            parameter = Choice(values=given) if isinstance(given, list) else given
            for other in parameter.when:
                if other not in known:
                    raise ValueError(f"parameters.{key}: when names {other}; expected a parameter before it")
            known[key] = parameter
        return known

    def __iter__(self) -> Iterator[tuple[str, Choice | Span]]:  # type: ignore[override]
        """Key and parameter, in order."""
        yield from self.parameters.items()  # type: ignore[misc]

    def size(self, most: int) -> int | None:
        """How many settings there are; null where that is more than `most`, or a range makes them endless."""
        if any(isinstance(parameter, Span) for _, parameter in self):
            return None
        counted = sum(1 for _ in itertools.islice(self.settings(), most + 1))
        return counted if counted <= most else None

    def settings(self) -> Iterator[Setting]:
        """Every setting of a space without ranges, the last parameter varying fastest."""
        yield from _completed({}, list(self))


def _completed(setting: Setting, parameters: list[tuple[str, Choice | Span]]) -> Iterator[Setting]:
    """The setting with every choice of the parameters that are still open."""
    if not parameters:
        yield setting
        return
    (key, parameter), *others = parameters
    if not exists(parameter, setting):
        yield from _completed(setting, others)
        return
    assert isinstance(parameter, Choice)
    for value in parameter.values:
        yield from _completed({**setting, key: value}, others)


def exists(parameter: Choice | Span, setting: Mapping[str, Any]) -> bool:
    """Whether a parameter is there under what was chosen before it."""
    return all(
        key in setting and setting[key] in (allowed if isinstance(allowed, list) else [allowed])
        for key, allowed in parameter.when.items()
    )
