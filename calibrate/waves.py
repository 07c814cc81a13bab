"""FlashAttention-2's decode kernel as what it is: thread blocks that a GPU's multiprocessors take from a list.

One block computes one head of one sequence (`flash_fwd_launch_template.h` of Dao-AILab/flash-attention: the grid is
query tiles × sequences × heads, heads slowest), a multiprocessor has shared memory for one at a time, and a block runs
for as long as its sequence's context. So a batch of unequal contexts ends when its last long block does, and not when
the mean context would. Blocks in flight share the memory's bandwidth; a lone one is bound by its own speed.

All four constants of the law are read off a profile's attention table; none is fitted to unequal batches, which is why
those that a profile holds can judge it (`calibrate.skew`).
"""

from __future__ import annotations

from dataclasses import dataclass
from heapq import heapify, heapreplace

import numpy as np
import polars as pl

from calibrate.model import ModelShape

# The kernel divides a sequence over several blocks where whole ones would fill less than this share of two blocks a
# multiprocessor (`num_splits_heuristic` in flash_api.cpp).
_SPLIT_BELOW = 0.8 * 2
# Blocks simulated one by one at the end of the list, in rounds of all multiprocessors. Before them the multiprocessors
# are kept equally busy by taking whatever comes next. With fewer rounds than this nothing is left out.
_LAST_ROUNDS = 12


@dataclass(frozen=True)
class BlockWaves:
    """A kernel on one GPU. Rates are tokens of one head's keys and values a second."""

    multiprocessors: int
    heads: int  # blocks a sequence
    block_rate: float  # of a block that has the memory to itself
    total_rate: float  # of all blocks together
    start: float  # seconds that a block takes beyond its tokens

    def seconds(self, contexts: np.ndarray) -> float:
        """Until the last block has ended; `contexts` are tokens a sequence, (sequences,), in the batch's order."""
        work = np.tile(contexts + self.start * self.block_rate, self.heads)
        ends = _list_schedule(work, self.multiprocessors)
        # Up to the i-th end, len - i blocks run; together they are no faster than the memory.
        running = np.arange(len(ends), 0, -1)
        seconds_per_token = np.maximum(1.0 / self.block_rate, running / self.total_rate)
        return float((np.diff(ends, prepend=0.0) * seconds_per_token).sum())


def _list_schedule(work: np.ndarray, machines: int) -> np.ndarray:
    """When each machine has ended its last job, rising, if every job goes to the first machine that is free."""
    if len(work) <= machines:
        return np.sort(work)
    early = max(0, len(work) - _LAST_ROUNDS * machines)
    if early > machines:
        free = [float(work[:early].sum()) / machines] * machines
        rest = work[early:]
    else:
        free, rest = work[:machines].tolist(), work[machines:]
        heapify(free)
    for job in rest.tolist():
        heapreplace(free, free[0] + job)
    return np.sort(np.array(free))


def splits_sequences(sequences: int, kv_heads: int, multiprocessors: int) -> bool:
    """Whether the decode kernel divides sequences over blocks, which evens out unequal contexts."""
    return sequences * kv_heads < _SPLIT_BELOW * multiprocessors


def waves_of(attention: pl.DataFrame, rank: ModelShape, multiprocessors: int) -> tuple[BlockWaves, BlockWaves] | None:
    """The kernel in a pure decode step and beside a prefill, from one rank's attention table (one layer's seconds).

    A pure decode step packs the query heads of a KV head into one block; beside a prefill every query head is a block
    of its own, and those of one KV head find each other's data in the cache. None if the table cannot tell:

    - the rate of a lone block needs one decoding sequence beside a small prefill, over contexts;
    - a block's start needs the same at contexts of next to nothing, over sequences;
    - the rate of the memory needs a large pure decode batch.
    """
    beside = attention.filter((pl.col("prefill_chunk") > 0) & (pl.col("n_decode") > 0))
    pure = attention.filter(pl.col("prefill_chunk") == 0)
    if beside.is_empty() or pure.is_empty():
        return None
    beside = beside.filter(
        (pl.col("prefill_chunk") == beside["prefill_chunk"].min())
        & (pl.col("kv_prefill") == beside["kv_prefill"].min())
    )
    lone = beside.filter(pl.col("n_decode") == 1).sort("kv_decode")
    short = beside.filter(pl.col("kv_decode") == beside["kv_decode"].min()).sort("n_decode")
    rounds = np.ceil(short["n_decode"].to_numpy() * rank.heads / multiprocessors)
    if len(lone) < 2 or len(short) < 2 or rounds[-1] == rounds[0]:
        return None
    tokens, seconds = lone["kv_decode"].to_numpy().astype(float), lone["seconds"].to_numpy()
    from_half = max(0, int(np.searchsorted(tokens, tokens[-1] / 2)) - 1)  # long ones are free of what a launch takes
    if seconds[-1] <= seconds[from_half]:
        return None
    block_rate = float((tokens[-1] - tokens[from_half]) / (seconds[-1] - seconds[from_half]))
    start = float((short["seconds"][-1] - short["seconds"][0]) / (rounds[-1] - rounds[0]))
    largest = pure.with_columns(tokens=pl.col("n_decode") * pl.col("kv_decode")).sort("tokens").row(-1, named=True)
    total_rate = rank.kv_heads * largest["tokens"] / largest["seconds"]
    if not (block_rate > 0 and start >= 0 and total_rate > 0):
        return None
    per_head = rank.heads / rank.kv_heads
    return (
        BlockWaves(multiprocessors, rank.kv_heads, block_rate, total_rate, start),
        BlockWaves(multiprocessors, rank.heads, block_rate, total_rate * per_head, start),
    )
