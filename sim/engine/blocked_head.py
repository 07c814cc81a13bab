"""The first who waits found too few blocks: until when that stays so while those who run take more and more.

He needs blocks for his tokens, but for the cached ones that others hold; cached blocks that nobody holds he would take
from the free ones. Those are evicted as the running requests take blocks:

- From the end of what he was found to have: each is one free block less, and one less that he needs at most, since his
  chunk, which the budget limits, then begins a block earlier. He stays refused.
- Before the end, which leaves a gap: what lies behind it is lost with it while its blocks stay free, so he may need
  fewer by more than one. He may be admitted.

The second is rare: a request's last blocks are freed first, hence evicted first, so it takes two who computed the same
tokens at the same time and of whom one had the start cached and the other the rest.
"""

from __future__ import annotations

from typing import NamedTuple

from sim.engine.block_pool import BlockPool, Hit, Holding, Span


class BlockedHead(NamedTuple):
    """A request that was refused, by what it will hold, and what the prefix cache had of it."""

    holding: Holding
    hit: Hit

    def blocks_before_gap(self, pool: BlockPool, most: int) -> int:
        """How many blocks may be taken, `most` at most, before one leaves a gap in the hit."""
        free: list[tuple[Span, int]] = [
            (span, used) for span, used in zip(self.hit.spans, self.hit.used, strict=True) if not span.holders
        ]
        if self.hit.resumed and (resume := self.holding.resume) is not None:
            free.append((resume, self.hit.resumed))
        used_of = dict(free)
        taken = 0
        for span in pool.evictable:
            if taken >= most or len(free) < 2:
                break
            if span is free[-1][0]:
                free.pop()
            elif span in used_of:
                return min(most, taken + len(span.ids) - used_of[span])
            taken += len(span.ids)
        return most
