"""What a batching policy answers: until when those who gather wait for others. It has no clock."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from pydantic import Field

from ground.spec import Spec
from sim.engine.request import Request


class BatchSettings(Spec):
    """What is set on every policy under which batches form. Each has `cap`, `joins` and `lanes`, set or fixed."""

    fit_memory: bool = Field(
        default=True,
        description="a batch takes only requests whose prompt and output fit the KV pool beside those of all who run, "
        "so that nobody is ever preempted",
    )


class Window(Protocol):
    """Of one lane: when it opens."""

    def arrived(self, request: Request) -> None:
        """A request gathers; they come in order of arrival."""

    def opens(self, oldest: float) -> float:
        """When the window opens in which nobody came before `oldest`, unless its cap is reached before."""


# It is made from the settings of its policy.
MakeWindow = Callable[[Any], Window]
