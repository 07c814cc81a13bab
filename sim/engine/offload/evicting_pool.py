"""A block pool that says which cached blocks it is about to lose, so that they can be saved before that.

As in SGLang's HiCache with `write_back`, and in TensorRT-LLM: a block goes to host memory when it is evicted, and the
step that overwrites it waits for that.
"""

from __future__ import annotations

from collections.abc import Container

from sim.engine.block_pool import Ids
from sim.engine.offload.fetching_pool import FetchingPool
from sim.engine.offload.names import last_names


class EvictingPool(FetchingPool):
    """A `BlockPool`; `evicted` are (name, physical block) of what it lost since somebody last emptied the list: there
    the blocks lie until the next step begins."""

    def __init__(self, blocks: int, block_size: int) -> None:
        super().__init__(blocks, block_size)
        self.evicted: list[tuple[int, int]] = []

    def take(self, count: int) -> Ids[int]:
        missing = count
        for span in self._queue:
            if missing <= 0:
                break
            self.evicted += last_names(span, missing)
            missing -= len(span.ids)
        return super().take(count)

    def free_before_loss(self, saved: Container[int]) -> int:
        """How many blocks can be taken before one is lost whose name is not among the `saved`."""
        free = 0
        for span in self._queue:
            for name, _ in last_names(span, len(span.ids)):
                if name not in saved:
                    return free
                free += 1
            if not span.count:
                free += len(span.ids)
        return free
