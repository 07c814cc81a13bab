"""The queue that a batching policy needs."""

from __future__ import annotations

from collections.abc import Callable, Sized

from sim.engine.batching import BATCHINGS
from sim.engine.batching.batch_memory import BatchMemory
from sim.engine.batching.batch_queue import BatchQueue
from sim.engine.batching.continuous import ContinuousSettings
from sim.engine.config import EngineConfig
from sim.engine.ordering.waiting_queue import WaitingQueue


def batch_queue(
    config: EngineConfig, make_queue: Callable[[], WaitingQueue], batch: WaitingQueue, running: Sized
) -> BatchQueue | None:
    """`make_queue` makes one of the scheduling policy; `batch` is one, of those who may join `running`. None: there are
    no batches."""
    settings = config.batching
    make_window = BATCHINGS[settings.policy]
    if isinstance(settings, ContinuousSettings) or make_window is None:
        return None
    memory = BatchMemory(config) if settings.fit_memory else None
    return BatchQueue(settings, lambda: make_window(settings), make_queue, batch, running, config.max_num_seqs, memory)
