"""A block pool in which a request may hold blocks for tokens that it has yet to compute."""

from __future__ import annotations

from sim.engine.block_pool import BlockPool, Holding


class FetchingPool(BlockPool):
    """A `BlockPool`. Who waits for blocks to be fetched holds those of his whole prompt."""

    def blocks_missing(self, holding: Holding, tokens: int) -> int:
        return max(0, super().blocks_missing(holding, tokens))
