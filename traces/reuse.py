"""How much of the prompts a prefix cache could find again, from the chain ids of a trace alone."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import polars as pl

from traces.table import Trace


@dataclass(frozen=True)
class Reuse:
    """Blocks and tokens of all prompts, and how many of them a cache held when their request came."""

    blocks: int
    hit_blocks: int
    tokens: int
    hit_tokens: int

    @property
    def block_rate(self) -> float:
        return self.hit_blocks / self.blocks if self.blocks else 0.0

    @property
    def token_rate(self) -> float:
        return self.hit_tokens / self.tokens if self.tokens else 0.0


def prefix_reuse(trace: Trace, capacity: int | None = None) -> Reuse | None:
    """Replay the trace through one block cache, request by request in table order; null without prefix ids.

    `capacity` is in blocks of `prefix_block_tokens`; None never evicts. LRU rule: a request's hits are its leading
    run of cached blocks, counted before its blocks are touched, the last one first, so that prefixes leave last;
    eviction comes after the request. Blocks of the output enter the cache but are not looked up. Time does not pass
    within a request: this bounds what a real cache can find, it does not predict it.
    """
    if "prefix_ids" not in trace.requests.columns:
        return None
    cache: OrderedDict[int, None] = OrderedDict()
    blocks = hit_blocks = hit_tokens = 0
    for ids, prompt, block in _rows(trace.requests):
        looked_up = ids[: -(-prompt // block)]
        hits = 0
        for block_id in looked_up:
            if block_id not in cache:
                break
            hits += 1
        blocks += len(looked_up)
        hit_blocks += hits
        hit_tokens += min(hits * block, prompt)
        for block_id in reversed(ids):
            cache[block_id] = None
            cache.move_to_end(block_id)
        if capacity is not None:
            while len(cache) > capacity:
                cache.popitem(last=False)
    tokens = int(trace.requests["prompt_tokens"].sum())
    return Reuse(blocks, hit_blocks, tokens, hit_tokens)


def lru_curve(trace: Trace, capacities: Sequence[int]) -> dict[int, float]:
    """Capacity in blocks → share of prompt blocks found; empty without prefix ids."""
    curve = {}
    for capacity in capacities:
        reuse = prefix_reuse(trace, capacity)
        if reuse is not None:
            curve[capacity] = reuse.block_rate
    return curve


def _rows(requests: pl.DataFrame) -> Iterator[tuple[list[int], int, int]]:
    for ids, prompt, block in requests.select("prefix_ids", "prompt_tokens", "prefix_block_tokens").iter_rows():
        if ids:
            yield ids, prompt, block
