"""How much of the prompts a prefix cache could find again, from the chain ids of a trace alone."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from traces.lru_stack import are_chains, stack_hits
from traces.table import Trace

Ints = NDArray[np.int64]


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
    chains = _Chains.of(trace.requests)
    hits = chains.hits_without_limit() if capacity is None else chains.hits([capacity])[:, 0]
    return Reuse(
        int(chains.looked_up.sum()),
        int(hits.sum()),
        int(trace.requests["prompt_tokens"].sum()),
        int(np.minimum(hits * chains.block, chains.prompt).sum()),
    )


def lru_curve(trace: Trace, capacities: Sequence[int]) -> dict[int, float]:
    """Capacity in blocks → share of prompt blocks found; empty without prefix ids."""
    if "prefix_ids" not in trace.requests.columns:
        return {}
    chains = _Chains.of(trace.requests)
    blocks = int(chains.looked_up.sum())
    found = chains.hits(capacities).sum(axis=0).tolist()
    return {capacity: hits / blocks if blocks else 0.0 for capacity, hits in zip(capacities, found, strict=True)}


@dataclass(frozen=True)
class _Chains:
    """The requests that have prefix ids; `ids` are all of theirs end to end, numbered from 0."""

    ids: Ints
    lengths: Ints
    prompt: Ints
    block: Ints
    looked_up: Ints  # ids of the prompt; those behind them are of the output

    @classmethod
    def of(cls, requests: pl.DataFrame) -> _Chains:
        columns = requests.select("prefix_ids", "prompt_tokens", "prefix_block_tokens")
        rows = columns.filter(pl.col("prefix_ids").list.len() > 0)
        lengths = rows["prefix_ids"].list.len().to_numpy().astype(np.int64)
        prompt, block = rows["prompt_tokens"].to_numpy(), rows["prefix_block_tokens"].to_numpy()
        ids = rows["prefix_ids"].explode(keep_nulls=False).to_numpy().astype(np.int64)
        if len(ids) and (ids.min() < 0 or ids.max() > 4 * len(ids)):
            ids = np.unique(ids, return_inverse=True)[1]
        return cls(ids, lengths, prompt, block, np.minimum(lengths, -(-prompt // block)))

    def hits_without_limit(self) -> Ints:
        """Leading blocks of each prompt that an earlier request had."""
        row = np.repeat(np.arange(len(self.lengths)), self.lengths)
        # Written from the last request to the first, so that the first remains.
        first_with = np.empty(int(self.ids.max(initial=-1)) + 1, dtype=np.int64)
        first_with[self.ids[::-1]] = row[::-1]
        new = np.flatnonzero(first_with[self.ids] == row)
        begin = np.cumsum(self.lengths) - self.lengths
        found = self.lengths.copy()
        found[row[new][::-1]] = (new - begin[row[new]])[::-1]
        return np.minimum(found, self.looked_up)

    def hits(self, capacities: Sequence[int]) -> Ints:
        """Leading blocks of each prompt that an LRU cache holds, shape (requests, capacities)."""
        if are_chains(self.ids, self.lengths):
            return stack_hits(self.ids, self.lengths, self.looked_up, capacities)
        return np.column_stack([self._hits_block_by_block(capacity) for capacity in capacities])

    def _hits_block_by_block(self, capacity: int) -> Ints:
        """The rule itself, for ids that are no chains."""
        cache: OrderedDict[int, None] = OrderedDict()
        found = np.zeros(len(self.lengths), dtype=np.int64)
        begin = 0
        for request, (length, wanted) in enumerate(zip(self.lengths.tolist(), self.looked_up.tolist(), strict=True)):
            mine = self.ids[begin : begin + length].tolist()
            begin += length
            for block_id in mine[:wanted]:
                if block_id not in cache:
                    break
                found[request] += 1
            for block_id in reversed(mine):
                cache[block_id] = None
                cache.move_to_end(block_id)
            while len(cache) > capacity:
                cache.popitem(last=False)
        return found
