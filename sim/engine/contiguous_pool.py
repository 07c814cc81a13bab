"""A KV cache in contiguous ranges, one a request, reserved whole when it is admitted: what was before paged blocks.

How much is reserved are the baselines of Kwon et al., "Efficient Memory Management for Large Language Model Serving
with PagedAttention" (SOSP 2023), section 6.1: `oracle` reserves prompt and output exactly, as if the length of the
output were known; `pow2` the output rounded up to a power of two (32 slots for 25 tokens); `max` the longest sequence
that the model accepts. A range is found first fit (the paper took buddies), and free neighbours are one.

Figure 2 there names what the memory is for: tokens that are there, slots reserved for tokens that will come, slots that
will never be used (internal fragmentation), and free slots that no range fits into (external fragmentation).
"""

from __future__ import annotations

import sys
from bisect import bisect_left

from sim.engine.block_pool import NO_HIT, Hit, Holding, Ids


def reserved_slots(policy: str, prompt_tokens: int, output_tokens: int, max_model_len: int | None) -> int:
    """Token slots that a policy reserves for one request; `max` needs a `max_model_len`, which bounds `pow2`."""
    if policy == "max":
        assert max_model_len is not None
        return max_model_len
    if policy == "oracle":
        return prompt_tokens + output_tokens
    slots = prompt_tokens + (1 << (output_tokens - 1).bit_length())
    return slots if max_model_len is None else min(slots, max_model_len)


class Reserved(Holding):
    """The range of one request: `slots` from `start` on while it runs, of which it will have used `needed`."""

    __slots__ = ("needed", "slots", "start")

    def __init__(self, slots: int, needed: int) -> None:
        super().__init__()
        self.slots = slots
        self.needed = needed
        self.start = -1


class ContiguousPool:
    """A `sim.engine.kv_pool.KvPool` in which nobody who runs ever takes more than he was admitted with."""

    def __init__(self, blocks: int, block_size: int, policy: str, max_model_len: int | None) -> None:
        self.total = blocks
        self.free = sys.maxsize
        self.slots = blocks * block_size
        self.reserved = 0  # slots of all ranges
        self.needed = 0  # those of them that will be used
        self.fragmented = 0  # free slots, while the next request finds no range though they are enough for it
        self._block_size = block_size
        self._policy = policy
        self._max_model_len = max_model_len
        self._gaps: list[tuple[int, int]] = [(0, self.slots)]  # (start, slots), by start; no two touch

    @property
    def held(self) -> int:
        """Reserved, in blocks."""
        return -(-self.reserved // self._block_size)

    @property
    def largest_gap(self) -> int:
        return max((slots for _, slots in self._gaps), default=0)

    def fits(self, prompt_tokens: int, output_tokens: int) -> bool:
        slots = reserved_slots(self._policy, prompt_tokens, output_tokens, self._max_model_len)
        return prompt_tokens + output_tokens <= slots <= self.slots

    def take(self, count: int) -> Ids[int]:
        return Ids("i")

    def find(self, holding: Holding, tokens: int) -> Hit:
        return NO_HIT

    def admit(self, holding: Holding, hit: Hit, tokens: int, needed: int = 0) -> bool:
        """Reserve the range of a `Reserved`; False (nothing changed) if no gap is long enough."""
        assert isinstance(holding, Reserved)
        slots = holding.slots
        place = next((place for place, gap in enumerate(self._gaps) if gap[1] >= slots), None)
        if place is None:
            free = self.slots - self.reserved
            self.fragmented = free if free >= slots else 0
            return False
        start, length = self._gaps[place]
        self._gaps[place : place + 1] = [(start + slots, length - slots)] if length > slots else []
        holding.start = start
        self.reserved += slots
        self.needed += holding.needed
        self.fragmented = 0
        return True

    def hold(self, holding: Holding, tokens: int) -> None:
        pass

    def blocks_missing(self, holding: Holding, tokens: int) -> int:
        return 0

    def cache_full_blocks(self, holding: Holding, tokens: int) -> None:
        pass

    def release(self, holding: Holding, *, resumable_tokens: int = 0) -> None:
        assert isinstance(holding, Reserved)
        start, end = holding.start, holding.start + holding.slots
        holding.start = -1
        self.reserved -= holding.slots
        self.needed -= holding.needed
        self.fragmented = 0
        gaps = self._gaps
        place = bisect_left(gaps, (start, 0))
        first = last = place
        if place < len(gaps) and gaps[place][0] == end:
            end += gaps[place][1]
            last += 1
        if place and sum(gaps[place - 1]) == start:
            first -= 1
            start = gaps[first][0]
        gaps[first:last] = [(start, end - start)]

    def forget(self) -> None:
        pass
