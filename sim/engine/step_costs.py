"""What a step takes beyond its kernels: the sources of it that a scenario switches on, added up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from sim.engine.plan import Plan
from sim.engine.request import Request


class StepCost(NamedTuple):
    """Seconds.

    Attributes:
        once: before this step's kernels.
        each: that this step takes longer, and every equal one after it.
        host: the same of the host, hidden behind the device where the engine overlaps the two.
        restart: the step fails. It computes nothing and takes `once` seconds, in which the engine starts anew
            (`Scheduler.reset`); its `end` is not told.
        padding: that this step's kernels take longer because it is padded, as part of what the device does while the
            host prepares the next. Only of a step with a prefill, to which no other is equal.
    """

    once: float = 0.0
    each: float = 0.0
    host: float = 0.0
    restart: bool = False
    padding: float = 0.0

    @property
    def steady(self) -> tuple[float, float]:
        """What equal steps cost."""
        return self.each, self.host


FREE = StepCost()


class CostSource(Protocol):
    """Something that makes steps take longer. It writes its own events.

    Whether many equal steps are one event or one each must not show: what a step costs may change only where the batch
    does, not with the clock or with what waits.
    """

    def begin(self, plan: Plan, now: float) -> StepCost:
        """What the step that begins costs. Equal steps that follow it cost only `each` and `host`; it need not be asked
        for them, and says the same if it is."""

    def end(self, start: float, steps: int) -> None:
        """The step that began at `start`, and `steps - 1` equal ones after it, have ended."""

    def finished(self, request: Request, now: float) -> None:
        """It was answered."""

    def aborted(self, request: Request, now: float) -> None:
        """Its client has gone, perhaps before any step computed it."""


class StepCosts:
    """All sources of one engine."""

    def __init__(self, sources: Sequence[CostSource]) -> None:
        self._sources = sources

    def begin(self, plan: Plan, now: float) -> StepCost:
        """The sum of all. A source with which the step fails is the last one asked."""
        once = each = host = padding = 0.0
        for source in self._sources:
            cost = source.begin(plan, now)
            once += cost.once
            each += cost.each
            host += cost.host
            padding += cost.padding
            if cost.restart:
                return StepCost(once, restart=True)
        return StepCost(once, each, host, padding=padding)

    def end(self, start: float, steps: int) -> None:
        for source in self._sources:
            source.end(start, steps)

    def finished(self, request: Request, now: float) -> None:
        for source in self._sources:
            source.finished(request, now)

    def aborted(self, request: Request, now: float) -> None:
        for source in self._sources:
            source.aborted(request, now)
