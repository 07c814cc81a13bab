"""The KV block pool and its prefix cache: who holds which block, which to evict next.

vLLM's rules (`vllm/v1/core/block_pool.py`, `docs/design/prefix_caching.md`): only full blocks are cached, a
block is cached as soon as the step that fills it is scheduled, blocks that nobody holds wait in one queue, least
recently freed first, cached or not, and a request's blocks enter it last block first.

One `Span` stands for the consecutive blocks of a run of prefix ids, as long a run as has always been held and freed
together; where a request needs only the start of it, it is split there. So a prompt of a hundred thousand tokens costs
a few look-ups, and not one a block or one an id. Evicting the end of a span keeps its start usable, exactly as block by
block. Two differences remain. The blocks of one id are freed as a whole by the last of its holders (with ids of one
block there is no difference). And a block that two requests computed, because neither could see the other's, is cached
once: should that copy be evicted first, as can happen when prefixes are shared and requests preempted, the other one
is not found.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

# Evicted ids that a pool remembers, to say what had to be computed again for want of room; with more it forgets all.
_REMEMBERED = 1 << 17

Ids = array  # physical numbers of blocks, always of typecode "i": copied without touching an object a block


class Span:
    """Consecutive blocks that are held and freed together, and evicted from their end.

    They are those of the ids `keys[at : at + count]`, `per_key` blocks each, of which the last may lack some; or of no
    id (count 0). `split_off` is what was split off its end while it was held: whoever held it then holds that too.
    """

    __slots__ = ("at", "count", "holders", "ids", "keys", "per_key", "split_off")

    def __init__(self, ids: Ids[int], keys: Sequence[int] = (), at: int = 0, count: int = 0, per_key: int = 1) -> None:
        self.ids = ids
        self.keys = keys
        self.at = at
        self.count = count
        self.per_key = per_key
        self.holders = 1
        self.split_off: Span | None = None


class Holding:
    """The blocks of one request, in token order: spans under its prefix ids, then a tail under none."""

    __slots__ = ("blocks", "blocks_per_key", "cached_anew", "keys", "resume", "resume_at", "runs", "tail")

    def __init__(self, keys: Sequence[int] = (), blocks_per_key: int = 1) -> None:
        self.keys = keys
        self.blocks_per_key = blocks_per_key
        # A span, and how many blocks this request reads of it and of what was split off it since.
        self.runs: list[tuple[Span, int]] = []
        self.tail = Ids("i")
        self.blocks = 0  # those of the runs and the tail
        # What preemption left in the cache of the tail, and the number of blocks before it.
        self.resume: Span | None = None
        self.resume_at = 0
        self.cached_anew = 0  # blocks that it put in the cache, which had held and evicted them; its reader zeroes it

    @property
    def spans(self) -> list[Span]:
        """Every span that is held, in token order."""
        return [span for span, _ in self._read()]

    def block_table(self) -> list[int]:
        """Physical block ids in token order."""
        table = Ids("i")
        for span, blocks in self._read():
            table += span.ids[:blocks]
        return (table + self.tail).tolist()

    def _read(self) -> list[tuple[Span, int]]:
        """Every span that is held, and how many blocks of it this request reads; the rest are another's."""
        out: list[tuple[Span, int]] = []
        for first, blocks in self.runs:
            span: Span | None = first
            while span is not None:
                length = len(span.ids)
                out.append((span, min(length, blocks)))
                blocks -= length
                span = span.split_off if blocks > 0 else None
        return out


class Hit(NamedTuple):
    """What the prefix cache has of a request."""

    spans: list[Span]
    used: list[int]  # blocks of each span
    resumed: int  # blocks of its own tail, from before it was preempted
    tokens: int


NO_HIT = Hit([], [], 0, 0)


class BlockPool:
    """All blocks of one engine. `free` counts those that nobody holds, cached ones included."""

    def __init__(self, blocks: int, block_size: int) -> None:
        self.total = blocks
        self.free = blocks
        self.block_size = block_size
        everything = Span(_last_to_first(blocks))  # taken from the end: block 0 first
        everything.holders = 0
        self._queue: OrderedDict[Span, None] = OrderedDict({everything: None})
        # Id → the span that has its blocks; None: they were evicted.
        self._cached: dict[int, Span | None] = {}
        self._evicted = 0  # ids that are None

    @property
    def held(self) -> int:
        return self.total - self.free

    @property
    def evictable(self) -> Iterable[Span]:
        """What nobody holds, in the order in which it is taken, each span from its end."""
        return self._queue

    def fits(self, prompt_tokens: int, output_tokens: int) -> bool:
        """Whether such a request finds place when it is alone. Its last token is never computed."""
        return prompt_tokens + output_tokens - 1 <= self.total * self.block_size

    def take(self, count: int) -> Ids[int]:
        """The `count` blocks that were free the longest; cached ones among them are forgotten.

        The caller has checked that `count <= free`.
        """
        self.free -= count
        taken = Ids("i")
        queue = self._queue
        while count:
            span = next(iter(queue))
            ids = span.ids
            if len(ids) > count:
                taken += ids[-count:]
                del ids[-count:]
                if (kept := -(-len(ids) // span.per_key)) < span.count:
                    self._forget(span, kept)
                break
            taken += ids
            count -= len(ids)
            del queue[span]
            # A resumable tail is still known to its request: it must find nothing left here.
            span.ids = Ids("i")
            if span.count:
                self._forget(span, 0)
        return taken

    def find(self, holding: Holding, tokens: int) -> Hit:
        """The longest run of cached blocks that begin a request of `tokens` tokens; touches nothing.

        At least one token is left to compute, for its logits.
        """
        if not holding.keys and holding.resume is None:
            return NO_HIT
        limit = (tokens - 1) // self.block_size
        spans: list[Span] = []
        used: list[int] = []
        blocks, position = 0, 0
        keys = holding.keys
        while position < len(keys) and blocks < limit:
            span = self._cached.get(keys[position])
            if span is None:
                break
            same = _common(keys, position, span)
            count = min(len(span.ids), same * span.per_key, limit - blocks)
            spans.append(span)
            used.append(count)
            blocks += count
            position += same
            if count < same * span.per_key:
                break  # its end was evicted, or is not needed
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
        revived = hit.resumed
        for span, used in zip(hit.spans, hit.used, strict=True):
            if not span.holders:
                revived += min(len(span.ids), -(-used // span.per_key) * span.per_key)
        if -(-max(tokens, needed) // self.block_size) - found + revived > self.free:
            return False
        for span, used in zip(hit.spans, hit.used, strict=True):
            whole = -(-used // span.per_key)  # ids that are held for it
            start = span if whole == span.count else self._split(span, whole)
            if not start.holders:
                self._queue.pop(start, None)
                self.free -= len(start.ids)
            start.holders += 1
            holding.runs.append((start, used))
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
        missing = -(-tokens // self.block_size) - holding.blocks
        if missing > 0:
            holding.tail += self.take(missing)
            holding.blocks += missing

    def blocks_missing(self, holding: Holding, tokens: int) -> int:
        return -(-tokens // self.block_size) - holding.blocks

    def cache_full_blocks(self, holding: Holding, tokens: int) -> None:
        """Put the blocks filled by the first `tokens` tokens under their ids."""
        keys, per_key = holding.keys, holding.blocks_per_key
        if not keys:
            return
        placed = holding.blocks - len(holding.tail)
        full = min(tokens // self.block_size, len(keys) * per_key)
        if full <= placed:
            return
        ids = holding.tail[: full - placed]
        del holding.tail[: full - placed]
        index, inside = divmod(placed, per_key)
        if inside:  # the rest of an id
            rest = per_key - inside
            self._continue_id(holding, ids[:rest])
            ids = ids[rest:]
            index += 1
        if not ids:
            return
        end = index - (-len(ids) // per_key)
        if not any(map(self._cached.get, keys[index:end])):
            self._place(holding, ids, index, end)
            return
        for at in range(index, end):
            part, ids = ids[:per_key], ids[per_key:]
            if self._cached.get(keys[at]) is not None:  # another request was faster: our copy stays without a name
                holding.runs.append((Span(part, per_key=per_key), len(part)))
            else:
                self._place(holding, part, at, at + 1)

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
            self._enqueue(Span(tail[full:]))
            holding.resume = Span(tail[:full])
            holding.resume_at = before
            self._enqueue(holding.resume)
        elif tail:
            self._enqueue(Span(tail))
        for span in reversed(holding.spans) if holding.runs else ():
            span.holders -= 1
            if not span.holders:
                self._queue[span] = None
                self.free += len(span.ids)
        holding.runs, holding.tail, holding.blocks = [], Ids("i"), 0

    def forget(self) -> None:
        """Lose everything; nobody holds a block. No id was evicted for want of room: they are as if never seen."""
        self.take(self.total)
        self._cached.clear()
        self._evicted = 0
        self._enqueue(Span(_last_to_first(self.total)))

    def _enqueue(self, span: Span) -> None:
        span.holders = 0
        if span.ids:
            self._queue[span] = None
            self.free += len(span.ids)

    def _continue_id(self, holding: Holding, ids: Ids[int]) -> None:
        """Blocks of an id whose first ones this request reads already."""
        first, blocks = holding.runs[-1]
        span, read = first, blocks
        while span.split_off is not None and read > len(span.ids):
            read -= len(span.ids)
            span = span.split_off
        if len(span.ids) == read:
            span.ids += ids  # we are at the frontier of this id: go on
            holding.runs[-1] = (first, blocks + len(ids))
        else:
            holding.runs.append((Span(ids, per_key=span.per_key), len(ids)))

    def _place(self, holding: Holding, ids: Ids[int], index: int, end: int) -> None:
        """Cache blocks under the ids `keys[index:end]`, which are not cached."""
        keys = holding.keys
        span = holding.runs[-1][0] if holding.runs else None
        if (
            span is not None
            and span.holders == 1
            and span.keys is keys
            and span.at + span.count == index
            and span.split_off is None
            and len(span.ids) == holding.runs[-1][1]
        ):
            span.ids += ids
            span.count += end - index
            holding.runs[-1] = (span, holding.runs[-1][1] + len(ids))
        else:
            span = Span(ids, keys, index, end - index, holding.blocks_per_key)
            holding.runs.append((span, len(ids)))
        unknown = len(self._cached)
        self._cached.update(dict.fromkeys(keys[index:end], span))
        evicted = end - index - (len(self._cached) - unknown)
        if evicted:
            self._evicted -= evicted
            holding.cached_anew += evicted * holding.blocks_per_key

    def _split(self, span: Span, count: int) -> Span:
        """Split a span after its first `count` ids; returns the part before.

        Of a span in the queue the part behind keeps its place there, and the part before is in no queue: it is about to
        be held. Of one that is held the part before stays what its holders know.
        """
        blocks = count * span.per_key
        start, rest = span.ids[:blocks], span.ids[blocks:]
        keys, at, behind = span.keys, span.at, span.count - count
        if span.holders:
            other = Span(rest, keys, at + count, behind, span.per_key)
            other.holders = span.holders
            other.split_off, span.split_off = span.split_off, other
            span.ids, span.count = start, count
            self._cached.update(dict.fromkeys(keys[at + count : at + count + behind], other))
            return span
        other = Span(start, keys, at, count, span.per_key)
        other.holders = 0
        span.ids, span.at, span.count = rest, at + count, behind
        self._cached.update(dict.fromkeys(keys[at : at + count], other))
        return other

    def _forget(self, span: Span, kept: int) -> None:
        """Forget all ids of a span but the first `kept`."""
        forgotten = span.keys[span.at + kept : span.at + span.count]
        self._cached.update(dict.fromkeys(forgotten))
        self._evicted += len(forgotten)
        span.count = min(kept, span.count)
        if self._evicted > _REMEMBERED:
            self._cached = {key: span for key, span in self._cached.items() if span is not None}
            self._evicted = 0


def _last_to_first(blocks: int) -> Ids[int]:
    return Ids("i", np.arange(blocks - 1, -1, -1, dtype=np.intc).tobytes())


def _common(keys: Sequence[int], position: int, span: Span) -> int:
    """How many ids of a span go on in `keys` from `position`, where the first one does."""
    at, count, theirs = span.at, span.count, span.keys
    if keys[position : position + count] == theirs[at : at + count]:
        return count
    same = 1
    most = min(count, len(keys) - position)
    while same < most and keys[position + same] == theirs[at + same]:
        same += 1
    return same
