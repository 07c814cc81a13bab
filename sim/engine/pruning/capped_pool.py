"""The KV blocks of requests that hold no more than so many tokens each, however long they get.

A request takes blocks until it has as many as it may have, and from then on writes over its own: it never gives one
back before it ends, and never takes one more. Blocks that are written over can be shared with nobody; the prefix cache
has those alone that never are, the first ones of each request.
"""

from __future__ import annotations

from sim.engine.block_pool import BlockPool, Hit, Holding


class CappedPool(BlockPool):
    """A `BlockPool` in which no tokens of a request beyond `most` count, and of its prefix none beyond `shared`; those
    are whole blocks."""

    def __init__(self, blocks: int, block_size: int, most: int, shared: int) -> None:
        super().__init__(blocks, block_size)
        self._most = most
        self._shared = shared

    def fits(self, prompt_tokens: int, output_tokens: int) -> bool:
        return min(prompt_tokens + output_tokens - 1, self._most) <= self.total * self.block_size

    def admit(self, holding: Holding, hit: Hit, tokens: int, needed: int = 0) -> bool:
        return super().admit(holding, hit, min(tokens, self._most), min(needed, self._most))

    def hold(self, holding: Holding, tokens: int) -> None:
        super().hold(holding, min(tokens, self._most))

    def blocks_missing(self, holding: Holding, tokens: int) -> int:
        return super().blocks_missing(holding, min(tokens, self._most))

    def cache_full_blocks(self, holding: Holding, tokens: int) -> None:
        super().cache_full_blocks(holding, min(tokens, self._shared))

    def release(self, holding: Holding, *, resumable_tokens: int = 0) -> None:
        """Nothing of the tail stays findable: where it was written over, it is no prefix any more."""
        super().release(holding)
