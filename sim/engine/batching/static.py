"""Static batches: all who wait when nobody runs become a batch, and nobody joins it until all of it has finished.

What Yu et al. ("Orca", OSDI 2022) call request-level scheduling, as FasterTransformer behind Triton had it. Who has
finished leaves at once: his client does not wait for the longest of the batch, and no step computes padding for him.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from sim.engine.batching.window import BatchSettings
from sim.engine.request import Request


class StaticSettings(BatchSettings):
    policy: Literal["static"]

    cap: ClassVar[int | None] = None
    joins: ClassVar[Literal["idle"]] = "idle"
    lanes: ClassVar[bool] = False


class StaticBatches:
    """A window that is never shut: that nobody runs is all that a batch waits for."""

    def __init__(self, settings: StaticSettings) -> None:
        pass

    def arrived(self, request: Request) -> None:
        pass

    def opens(self, oldest: float) -> float:
        return oldest
