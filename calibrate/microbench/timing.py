"""Timing one kernel after another: laps between marks, by the clock on a CPU and by events on a GPU.

With one CPU thread the clock is the time that this thread was on its processor. On a quiet machine that is the wall
clock; on a busy one it leaves out the turns of other processes, which are no part of what the device can do.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from time import perf_counter, thread_time

import torch

# A pass over the model's layers is repeated until it has taken this long, within these bounds.
MIN_PASSES, MAX_PASSES = 3, 40

# A GPU is held back until the host has queued a whole pass, so that no launch gap is timed: at first for so many
# seconds, then for as much longer than the host took for the last pass.
_FIRST_SPIN = 0.02
_SPIN_FACTOR = 1.5
_SPIN_BOUNDS = (0.0005, 0.2)
_CYCLES_PER_SECOND = 2e9  # no less than any GPU's, so that the spin is no shorter than meant


class LapTimer:
    """Names the time since the last mark; laps of one name add up.

    On a GPU the marks are events on the stream, which a spinning kernel holds back while the host queues. How long that
    takes it learns from the pass before, so the first pass of a kind may hold launch gaps: `repeat` does not count it.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._spin = _FIRST_SPIN
        self._began = 0.0
        self._marks: list[tuple[str, float | torch.cuda.Event]] = []

    def start(self) -> None:
        """Forget all laps; the first begins now."""
        self._marks = []
        if self._on_gpu:
            torch.cuda.synchronize()
            torch.cuda._sleep(round(self._spin * _CYCLES_PER_SECOND))
            self._began = perf_counter()
        self.lap("")

    def lap(self, name: str) -> None:
        """The time since the last mark belongs to `name`; "" is not wanted."""
        if self._on_gpu:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append((name, event))
        else:
            self._marks.append((name, cpu_clock()))

    def seconds(self) -> dict[str, float]:
        """Total seconds by name, the unwanted left out."""
        if self._on_gpu:
            low, high = _SPIN_BOUNDS
            self._spin = min(max(_SPIN_FACTOR * (perf_counter() - self._began), low), high)
            torch.cuda.synchronize()
        total: dict[str, float] = defaultdict(float)
        for (_, before), (name, after) in zip(self._marks, self._marks[1:], strict=False):
            if name:
                total[name] += _between(before, after)
        return dict(total)


def repeat(one_pass: Callable[[], dict[str, float]], budget: float) -> dict[str, list[float]]:
    """Run a pass again and again for about `budget` seconds; every pass's seconds by name.

    Passes before it, at least one and for a third of the budget, warm up: the memory that the allocator gave back
    after a larger point is faulted in again, and the kernels' code is in the cache.
    """
    begin = perf_counter()
    one_pass()
    while perf_counter() - begin < budget / 3:
        one_pass()
    samples: dict[str, list[float]] = defaultdict(list)
    begin = perf_counter()
    for done in range(MAX_PASSES):
        if done >= MIN_PASSES and perf_counter() - begin > budget:
            break
        for name, seconds in one_pass().items():
            samples[name].append(seconds)
    return dict(samples)


def cpu_clock() -> float:
    """Seconds from some moment on: this thread's where torch uses one thread, else the wall's."""
    return thread_time() if torch.get_num_threads() == 1 else perf_counter()


def whole(run: Callable[[], object], device: torch.device) -> float:
    """Seconds from an idle device to an idle device; on a GPU by the wall clock."""
    if device.type == "cpu":
        begin = cpu_clock()
        run()
        return cpu_clock() - begin
    torch.cuda.synchronize()
    begin = perf_counter()
    run()
    torch.cuda.synchronize()
    return perf_counter() - begin


def _between(before: float | torch.cuda.Event, after: float | torch.cuda.Event) -> float:
    if isinstance(before, float) or isinstance(after, float):
        return float(after) - float(before)
    return before.elapsed_time(after) / 1e3
