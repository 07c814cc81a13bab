"""Batches that go round a pipeline unchanged, many times over, as one event."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import NamedTuple

from sim.engine.decode_batch import DecodeBatch
from sim.engine.plan import Plan

_MOST = 4096  # times that one leap schedules a batch


class MicroBatch(NamedTuple):
    """A batch in flight: in the first stage from `start`, out of the last at `end`."""

    plan: Plan
    start: float
    end: float


class Stages:
    """The stages of one pipeline: each computes one batch after the other."""

    def __init__(self, count: int) -> None:
        self.free = [0.0] * count  # since or from when each is

    def run(self, ready: float, seconds: Sequence[float], send: float) -> tuple[float, float]:
        """Send a batch through, `ready` for the first stage; returns when it starts there and leaves the last."""
        free, start, at, last = self.free, 0.0, ready, len(seconds) - 1
        for stage, own in enumerate(seconds):
            if free[stage] > at:
                at = free[stage]
            if not stage:
                start = at
            at += own
            free[stage] = at
            if stage < last:
                at += send
        return start, at


class Round(NamedTuple):
    """What one of the batches that go round needs: who decodes, how often nobody of them finishes, what takes how long.

    `seconds` are of each stage, one list a time; `send` between two stages.
    """

    batch: DecodeBatch
    times: int
    seconds: Sequence[Sequence[float]]
    send: float


class PipelineLeap:
    """While nobody comes or finishes, the batch that leaves the pipeline enters it anew at the same instant.

    The instants follow from the same additions, in the same order, as if each time were scheduled by itself, so a leap
    gives the same bits.
    """

    def __init__(
        self, flight: Sequence[MicroBatch], rounds: Sequence[Round], stages: Stages, free_blocks: int, block_size: int
    ) -> None:
        """`flight`: what is in the pipeline, oldest first, each with its `Round`."""
        self._width = len(flight)
        self._flight = [(one.start, one.end) for one in flight]  # and all that enter it
        self._free = [list(stages.free)]  # after each entry
        self._blocks = [0]  # taken up to then
        taken = [0] * self._width
        for entry in range(_MOST):
            own = rounds[entry % self._width]
            times = taken[entry % self._width]
            blocks = own.batch.at_edge[(own.batch.step + times) % block_size]
            if times == own.times or self._blocks[-1] + blocks > free_blocks:
                break
            self._flight.append(stages.run(self._flight[entry][1], own.seconds[times], own.send))
            self._free.append(list(stages.free))
            self._blocks.append(self._blocks[-1] + blocks)
            taken[entry % self._width] += 1
        self.entries = len(self._flight) - self._width  # that will be made

    @property
    def end(self) -> float:
        """When the first batch leaves after all of that."""
        return self._flight[self.entries][1]

    def entries_before(self, time: float) -> int:
        """How many of them are made before `time`."""
        return bisect_left(self._flight, time, hi=self.entries, key=lambda one: one[1])

    def blocks_before(self, time: float) -> int:
        """KV blocks that they have taken before `time`."""
        return self._blocks[self.entries_before(time)]

    def made(self, index: int) -> list[tuple[float, float]]:
        """(start, end) of each entry of the `index`-th batch."""
        return self._flight[self._width + index : self._width + self.entries : self._width]

    def left(self, index: int) -> bool:
        """Whether the `index`-th batch has left the pipeline at all."""
        return index < self.entries

    def free(self) -> list[float]:
        """From when each stage is free after all entries."""
        return self._free[self.entries]

    def flight(self, plans: Sequence[Plan]) -> list[MicroBatch]:
        """What is in the pipeline then, oldest first; `plans` are what is in flight of each batch."""
        rows = range(self.entries, self.entries + self._width)
        return [MicroBatch(plans[row % self._width], *self._flight[row]) for row in rows]


def plan_leap(
    flight: Sequence[MicroBatch],
    batches: Sequence[DecodeBatch],
    stages: Stages,
    free_blocks: int,
    block_size: int,
    seconds_of: Callable[[DecodeBatch, int], tuple[Sequence[Sequence[float]], float]],
) -> PipelineLeap | None:
    """The longest leap from here; None where there is none worth it. `seconds_of(batch, times)`: as in `Round`."""
    most = 1 + _MOST // len(flight)
    times = [min(most, batch.horizon(1 << 62) - 1) for batch in batches]
    least = min(times)
    if least < 2:
        return None
    times = [min(count, least + 1) for count in times]  # as often as all go round, and once more
    rounds = [Round(batch, count, *seconds_of(batch, count)) for batch, count in zip(batches, times, strict=True)]
    before = list(stages.free)
    leap = PipelineLeap(flight, rounds, stages, free_blocks, block_size)
    stages.free = before
    return leap if leap.entries > len(flight) else None
