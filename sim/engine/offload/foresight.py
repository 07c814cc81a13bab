"""Tells a scheduler's policies what copies and recomputing will take, where they ask."""

from __future__ import annotations

from collections.abc import Callable

from sim.engine.offload.predicted import Predicted
from sim.engine.scheduler import Scheduler
from sim.engine.step_times import StepTimes


def foresee(scheduler: Scheduler, step_times: StepTimes, disk_read: Callable[[int], float]) -> None:
    """`disk_read`: seconds to read so many KV blocks from disk."""
    config = scheduler.config
    chunk = min(config.long_prefill_token_threshold or config.max_num_batched_tokens, config.max_num_batched_tokens)
    predicted = Predicted(step_times, chunk, disk_read)
    if config.preemption == "auto":
        scheduler.swap.worth = lambda tokens, blocks: predicted.swap(blocks) < predicted.recompute(0, tokens)
    if scheduler.offload is not None:
        scheduler.offload.predicted = predicted
