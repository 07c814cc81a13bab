"""A fixed window: a batch forms when the oldest has waited so long, or so many wait.

What Triton's dynamic batcher does (`max_queue_delay_microseconds`, `max_batch_size`).
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from sim.engine.batching.window import BatchSettings
from sim.engine.request import Request


class WindowSettings(BatchSettings):
    """What is set on every window."""

    cap: int | None = Field(
        default=None, gt=0, description="most requests of a batch, and so many open it; max_num_seqs if not given"
    )
    joins: Literal["idle", "running"] = Field(
        default="running", description="whether a batch waits until nobody runs, or joins those who do"
    )
    lanes: bool = Field(
        default=False, description="one window for each priority, of which the most urgent is served first"
    )


class FixedWindowSettings(WindowSettings):
    policy: Literal["fixed_window"]
    seconds: float = Field(ge=0, description="that the oldest waits for others")


class FixedWindow:
    def __init__(self, settings: FixedWindowSettings) -> None:
        self._seconds = settings.seconds

    def arrived(self, request: Request) -> None:
        pass

    def opens(self, oldest: float) -> float:
        return oldest + self._seconds
