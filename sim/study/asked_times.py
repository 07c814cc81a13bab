"""Step times that somebody asks for who does not run them: what they look up outside the grid is no part of the run."""

from __future__ import annotations

from collections.abc import Sequence

from calibrate.latency import StepLatency


class AskedTimes:
    def __init__(self, times: StepLatency) -> None:
        self._times = times

    def step(self, prefills: Sequence[tuple[int, int]], decodes: int, kv_tokens: int) -> float:
        """As `StepLatency.step`."""
        counted = self._times.extrapolated.copy()
        seconds = self._times.step(prefills, decodes, kv_tokens)
        self._times.extrapolated.clear()
        self._times.extrapolated.update(counted)
        return seconds
