"""Times of pipeline stages with a simple law, the first and last a little longer."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from engine_workloads import LinearStepTimes


@dataclass(frozen=True)
class PipelinedStepTimes(LinearStepTimes):
    count: int = 2
    extra: Sequence[float] = (0.001, 0.0, 0.0, 0.000_7)  # of each stage
    per_sent_token: float = 0.000_03

    def stages(
        self, prefills: Sequence[tuple[int, int]], decodes: int, kv_tokens: int, spread: object = None
    ) -> list[float]:
        seconds = self.step(prefills, decodes, kv_tokens) / self.count
        return [seconds + extra for extra in self._extras()]

    def stage_runs(self, decodes: int, kv_tokens: int, steps: int, spread: object = None) -> list[np.ndarray]:
        seconds = self.decode_run(decodes, kv_tokens, steps) / self.count
        return [seconds + extra for extra in self._extras()]

    def sends(self, prefill_tokens: int, decodes: int) -> float:
        return self.per_sent_token * (prefill_tokens + decodes)

    def _extras(self) -> list[float]:
        return [*self.extra[: self.count - 1], self.extra[-1]]
