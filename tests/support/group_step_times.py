"""Step times of engines in lock-step with a simple law, which also remembers what it was asked."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from engine_workloads import LinearStepTimes

from calibrate.batch import Batch


@dataclass(frozen=True)
class GroupStepTimes(LinearStepTimes):
    """The slowest engine's `step`, and what all tokens of the group take together; an idle engine computes one."""

    per_shared_token: float = 0.000_03
    asked: list[list[Batch]] = field(default_factory=list)

    def group_step(self, batches: Sequence[Batch]) -> float:
        if not any(batch.prefills for batch in batches):
            return float(self.group_decode_run(batches, 1)[0])
        self.asked.append(list(batches))
        own = [self.step(batch.prefills, max(1, batch.decodes), batch.kv_tokens) for batch in batches]
        return max(own) + self.per_shared_token * sum(tokens_of(batch) for batch in batches)

    def group_decode_run(self, batches: Sequence[Batch], steps: int) -> np.ndarray:
        self.asked.append(list(batches))
        own = [self.decode_run(batch.decodes, batch.kv_tokens, steps) for batch in batches]
        return np.max(own, axis=0) + self.per_shared_token * sum(tokens_of(batch) for batch in batches)


def tokens_of(batch: Batch) -> int:
    return max(1, batch.decodes + sum(new for new, _ in batch.prefills))
