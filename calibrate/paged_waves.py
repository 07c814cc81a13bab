"""The reference engine's decode attention over unequal contexts: blocks of whole parts, all of them running at once.

A block computes one KV head of one part of a sequence (`calibrate.kernels.gpu.decode_attention`). So many fit on a GPU
that most batches run in one wave; blocks share the memory's bandwidth until only the longest are left, and those are
bound by their own speed. What that speed is no table of equal contexts tells, as there the memory is the bound: it is
`grid.lone_block_rate` of a profile, read off steps that an engine ran.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from calibrate.kernels.gpu.splits import splits_on
from calibrate.waves import BlockWaves

# By its shared memory, 39 kB of 227 kB with 64 tokens of 128 numbers in two bytes.
_BLOCKS_PER_MULTIPROCESSOR = 5


@dataclass(frozen=True)
class PagedWaves:
    """The kernel on one GPU. Rates are tokens of one head's keys and values a second, `launch` is in seconds."""

    kv_heads: int
    multiprocessors: int
    block_rate: float
    total_rate: float
    launch: float

    @classmethod
    def of(cls, attention: pl.DataFrame, kv_heads: int, multiprocessors: int, block_rate: float) -> PagedWaves:
        """From one rank's attention table: the memory's rate by its largest batch, the launch by its smallest."""
        decodes = attention.filter(pl.col("n_decode") > 0).with_columns(tokens=pl.col("n_decode") * pl.col("kv_decode"))
        largest = decodes.sort("tokens").row(-1, named=True)
        total_rate = kv_heads * largest["tokens"] / largest["seconds"]
        launch = float(decodes["seconds"].to_numpy().min())
        return cls(kv_heads, multiprocessors, block_rate, total_rate, launch)

    def excess(self, contexts: np.ndarray) -> float:
        """By what share it takes longer than at the mean of these contexts, in tokens, (sequences,)."""
        equal = self._seconds(np.full(len(contexts), contexts.mean()))
        return max(0.0, (self._seconds(contexts) - equal) / (self.launch + equal))

    def _seconds(self, contexts: np.ndarray) -> float:
        parts = splits_on(len(contexts), self.kv_heads, self.multiprocessors)
        slots = _BLOCKS_PER_MULTIPROCESSOR * self.multiprocessors
        blocks = BlockWaves(slots, self.kv_heads * parts, self.block_rate, self.total_rate, start=0.0)
        return blocks.seconds(contexts / parts)
