"""What copies and recomputing will take, by the engine's own tables: for policies that choose between them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sim.engine.step_times import StepTimes


@dataclass(frozen=True)
class Predicted:
    """Each alone on an idle engine: what else runs in the same steps or is copied at the same time is not foreseen.

    `chunk`: most prompt tokens that one step computes of a request. `disk_read`: seconds to read so many blocks.
    """

    step_times: StepTimes
    chunk: int
    disk_read: Callable[[int], float]

    def recompute(self, start: int, end: int) -> float:
        """Seconds of the steps that compute the tokens from `start` to `end` of one request."""
        seconds = 0.0
        while start < end:
            tokens = min(self.chunk, end - start)
            seconds += self.step_times.step([(tokens, start)], 0, 0)
            start += tokens
        return seconds

    def fetch(self, blocks: int, from_disk: int) -> float:
        """Seconds to bring so many blocks to the device, of which some are read from disk first."""
        return self.step_times.swap(0, blocks) + (self.disk_read(from_disk) if from_disk else 0.0)

    def swap(self, blocks: int) -> float:
        """Seconds to copy so many blocks to host memory and back."""
        return self.step_times.swap(blocks, 0) + self.step_times.swap(0, blocks)
