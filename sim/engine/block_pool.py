"""The KV block pool and its prefix cache: who holds which block, which to evict next.

vLLM's rules (`vllm/v1/core/block_pool.py`, `docs/design/prefix_caching.md`): only full blocks are cached, a
block is cached as soon as the step that fills it is scheduled, blocks that nobody holds wait in one queue, least
recently freed first, cached or not, and a request's blocks enter it last block first.

One `Span` stands for the consecutive blocks of one prefix id, so that a trace with 512-token ids costs one look-up
an id and not one a block. Evicting the end of a span keeps its start usable, exactly as block by block. Two
differences remain. A span that several requests hold is freed as a whole by the last of them (with ids of one block
there is no difference). And a block that two requests computed, because neither could see the other's, is cached
once: should that copy be evicted first, as can happen when prefixes are shared and requests preempted, the other one
is not found.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple


class Span:
    """Consecutive blocks that are held and freed together, and evicted from their end."""

    __slots__ = ("holders", "ids", "key")

    def __init__(self, key: int | None, ids: list[int]) -> None:
        self.key = key
        self.ids = ids
        self.holders = 1


class Holding:
    """The blocks of one request, in token order: spans under its prefix keys, then a tail under none."""

    __slots__ = ("blocks", "blocks_per_key", "keys", "resume", "resume_at", "spans", "tail", "used")

    def __init__(self, keys: Sequence[int] = (), blocks_per_key: int = 1) -> None:
        self.keys = keys
        self.blocks_per_key = blocks_per_key
        self.spans: list[Span] = []
        self.used: list[int] = []  # blocks of each span that this request reads; the rest are another's
        self.tail: list[int] = []
        self.blocks = 0  # sum(used) + len(tail)
        # What preemption left in the cache of the tail, and the number of blocks before it.
        self.resume: Span | None = None
        self.resume_at = 0

    def block_table(self) -> list[int]:
        """Physical block ids in token order."""
        table: list[int] = []
        for span, used in zip(self.spans, self.used, strict=True):
            table += span.ids[:used]
        return table + self.tail


class Hit(NamedTuple):
    """What the prefix cache has of a request."""

    spans: list[Span]
    used: list[int]  # blocks of each span
    resumed: int  # blocks of its own tail, from before it was preempted
    tokens: int


class BlockPool:
    """All blocks of one engine. `free` counts those that nobody holds, cached ones included."""

    def __init__(self, blocks: int, block_size: int) -> None:
        self.total = blocks
        self.free = blocks
        self.block_size = block_size
        everything = Span(None, list(range(blocks - 1, -1, -1)))  # taken from the end: block 0 first
        everything.holders = 0
        self._queue: OrderedDict[Span, None] = OrderedDict({everything: None})
        self._cached: dict[int, Span] = {}

    def take(self, count: int) -> list[int]:
        """The `count` blocks that were free the longest; cached ones among them are forgotten.

        The caller has checked that `count <= free`.
        """
        self.free -= count
        taken: list[int] = []
        while count:
            span = next(iter(self._queue))
            ids = span.ids
            if len(ids) > count:
                taken += ids[-count:]
                del ids[-count:]
                break
            taken += ids
            count -= len(ids)
            self._forget(span)
            # A resumable tail is still known to its request: it must find nothing left here.
            span.ids = []
        return taken

    def find(self, holding: Holding, tokens: int) -> Hit:
        """The longest run of cached blocks that begin a request of `tokens` tokens; touches nothing.

        At least one token is left to compute, for its logits.
        """
        limit = (tokens - 1) // self.block_size
        spans: list[Span] = []
        used: list[int] = []
        blocks = 0
        for key in holding.keys:
            span = self._cached.get(key)
            if span is None or blocks >= limit:
                break
            count = min(len(span.ids), limit - blocks)
            spans.append(span)
            used.append(count)
            blocks += count
            if count < holding.blocks_per_key:
                break
        resume = holding.resume
        resumed = 0
        if resume is not None and blocks == holding.resume_at:
            resumed = min(len(resume.ids), limit - blocks)
        return Hit(spans, used, resumed, (blocks + resumed) * self.block_size)

    def admit(self, holding: Holding, hit: Hit, tokens: int, needed: int = 0) -> bool:
        """Hold the blocks of `hit` and then new ones, for `tokens` tokens in all; False (nothing changed) if
        too few are free, be it for these or for `needed` tokens."""
        found = hit.tokens // self.block_size
        # Blocks found in the queue are free now and will not be.
        revived = sum(len(span.ids) for span in hit.spans if not span.holders) + hit.resumed
        if self._blocks_for(max(tokens, needed)) - found + revived > self.free:
            return False
        for span in hit.spans:
            if not span.holders:
                del self._queue[span]
                self.free -= len(span.ids)
            span.holders += 1
        holding.spans, holding.used = hit.spans, hit.used
        if hit.resumed and (resume := holding.resume):
            holding.tail = resume.ids[: hit.resumed]
            del resume.ids[: hit.resumed]
            self.free -= hit.resumed
            if not resume.ids:
                del self._queue[resume]
        holding.resume = None
        holding.blocks = found
        self.hold(holding, tokens)
        self.cache_full_blocks(holding, tokens)
        return True

    def hold(self, holding: Holding, tokens: int) -> None:
        """Hold blocks for `tokens` tokens in all.

        The caller has checked that `blocks_missing(holding, tokens) <= free`.
        """
        missing = self.blocks_missing(holding, tokens)
        if missing > 0:
            holding.tail += self.take(missing)
            holding.blocks += missing

    def blocks_missing(self, holding: Holding, tokens: int) -> int:
        return self._blocks_for(tokens) - holding.blocks

    def cache_full_blocks(self, holding: Holding, tokens: int) -> None:
        """Put the blocks filled by the first `tokens` tokens under their keys."""
        keys, per_key, tail = holding.keys, holding.blocks_per_key, holding.tail
        placed = holding.blocks - len(tail)
        full = min(tokens // self.block_size, len(keys) * per_key)
        moved = 0
        while placed < full:
            index, inside = divmod(placed, per_key)
            count = min(per_key - inside, full - placed)
            ids = tail[moved : moved + count]
            if inside and len(holding.spans[-1].ids) == holding.used[-1]:
                holding.spans[-1].ids += ids  # we are at the frontier of this key: go on
                holding.used[-1] += count
            else:
                key = keys[index]
                if inside or key in self._cached:
                    span = Span(None, ids)  # another request was faster: our copy stays without a name
                else:
                    span = self._cached[key] = Span(key, ids)
                holding.spans.append(span)
                holding.used.append(count)
            moved += count
            placed += count
        if moved:
            del tail[:moved]

    def release(self, holding: Holding, *, resumable_tokens: int = 0) -> None:
        """Give every block back, last one first.

        With `resumable_tokens` (the tokens computed so far, at preemption) the full blocks of the tail stay
        findable for this request alone: nobody else can have the same tokens there.
        """
        tail = holding.tail
        holding.resume = None
        if tail and resumable_tokens:
            before = holding.blocks - len(tail)
            full = max(0, resumable_tokens // self.block_size - before)
            self._enqueue(Span(None, tail[full:]))
            holding.resume = Span(None, tail[:full])
            holding.resume_at = before
            self._enqueue(holding.resume)
        else:
            self._enqueue(Span(None, tail))
        for span in reversed(holding.spans):
            span.holders -= 1
            if not span.holders:
                self._queue[span] = None
                self.free += len(span.ids)
        holding.spans, holding.used, holding.tail, holding.blocks = [], [], [], 0

    def _blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.block_size)

    def _enqueue(self, span: Span) -> None:
        span.holders = 0
        if span.ids:
            self._queue[span] = None
            self.free += len(span.ids)

    def _forget(self, span: Span) -> None:
        del self._queue[span]
        if span.key is not None:
            del self._cached[span.key]
