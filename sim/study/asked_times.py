"""Step times that somebody asks for who does not run them: what they look up outside the grid is no part of the run."""

from __future__ import annotations

from collections.abc import Sequence

from calibrate.latency import StepLatency
from calibrate.uncounted import uncounted


class AskedTimes:
    def __init__(self, times: StepLatency) -> None:
        self._times = times

    def step(self, prefills: Sequence[tuple[int, int]], decodes: int, kv_tokens: int) -> float:
        """As `StepLatency.step`."""
        with uncounted(self._times.extrapolated):
            return self._times.step(prefills, decodes, kv_tokens)
