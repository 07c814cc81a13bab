"""Decode steps as CUDA graphs: one captured for each of a few batch sizes, a batch padded to the next of them.

A graph replays fixed launches on fixed addresses. So everything that changes from step to step lies in one static
table of integers, a row a sequence, which one copy fills before the replay; a row that stands for no sequence reads and
writes one token of the decoder's padding block. Without a GPU the same padded pass runs uncaptured.
"""

from __future__ import annotations

import gc
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from time import perf_counter

import numpy as np
import torch

from calibrate.decoder import Decoder, Layout, SequenceInput
from calibrate.kernels.attention import AttentionPlan
from calibrate.kernels.backend import uses_triton
from calibrate.kernels.gpu.paged_plan import PagedPlan, decode_splits
from ground.errors import UserError

# The columns of a row. Its block table begins at a multiple of 32 bytes, as loads like it.
_TOKEN, _SOURCE, _POSITION, _SLOT, _CONTEXT = range(5)
_BLOCKS = 8


@dataclass(frozen=True)
class Capture:
    """What the graph of one batch size took: seconds, and bytes of device memory beyond those of larger graphs.

    Both count the first replay, which uploads the graph, and not the pass before the capture, which compiles kernels.
    """

    size: int
    seconds: float
    bytes: int


class DecodeGraphs:
    """The graphs of a decoder, and the padding that makes a batch fit one.

    `sizes` are the batch sizes to capture, rising. Contexts longer than `max_context` (the new token included; without
    it the model's own limit) do not fit, and their steps run eagerly: a smaller one makes a smaller table to copy.

    Raises:
        UserError: sizes that do not rise from 1 or more, or more sequences than a decoder takes.
    """

    def __init__(self, decoder: Decoder, sizes: Sequence[int], *, max_context: int | None = None) -> None:
        limit = len(decoder.sampled)
        rising = all(low < high for low, high in pairwise(sizes))
        if not sizes or not rising or sizes[0] < 1 or sizes[-1] > limit:
            raise UserError(f"graph sizes {list(sizes)}; expected rising numbers from 1 to {limit}")
        self.sizes = list(sizes)
        self.max_context = min(max_context or decoder.model.max_context, decoder.model.max_context)
        self._decoder = decoder
        self._paged = uses_triton(decoder.device)
        # torch's own kernels on a CPU take no other index than int64.
        dtype = torch.int32 if self._paged else torch.int64
        self._capacity = -(-self.max_context // decoder.block_size)
        self._inputs = torch.zeros(sizes[-1], _BLOCKS + self._capacity, dtype=dtype, device=decoder.device)
        self._rows = np.zeros(self._inputs.shape, np.int32 if self._paged else np.int64)
        self._held: list[list[int]] = [[]] * sizes[-1]  # the blocks that each row holds
        self._starts = torch.arange(sizes[-1] + 1, dtype=dtype, device=decoder.device)
        self._padding = np.zeros(_BLOCKS + 1, self._rows.dtype)
        self._padding[_SOURCE] = -1
        self._padding[_SLOT] = decoder.padding_block * decoder.block_size
        self._padding[_CONTEXT] = 1
        self._padding[_BLOCKS] = decoder.padding_block
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}

    @torch.inference_mode()
    def capture(self) -> list[Capture]:
        """Capture every size, and have the decoder replay them from now on; without a GPU nothing is taken.

        The decoder must have no step under way.
        """
        captured = []
        if self._decoder.device.type == "cuda":
            self._fill([], self.sizes[-1])
            stream, pool = torch.cuda.Stream(), torch.cuda.graph_pool_handle()
            # The largest first: the smaller ones find its memory in the pool.
            captured = [self._capture(size, stream, pool) for size in reversed(self.sizes)]
        else:
            captured = [Capture(size, 0.0, 0) for size in reversed(self.sizes)]
        self._decoder.graphs = self
        return captured[::-1]

    def size_for(self, batch: Sequence[SequenceInput]) -> int | None:
        """The size to which a batch is padded; None where it holds a prefill, too many sequences, or too long ones."""
        if not 0 < len(batch) <= self.sizes[-1]:
            return None
        longest = self.max_context
        for one in batch:
            if len(one.tokens) != 1 or one.start >= longest:
                return None
        return self.sizes[bisect_left(self.sizes, len(batch))]

    def run(self, batch: Sequence[SequenceInput], size: int) -> tuple[list[int], bool]:
        """Decode a batch that fits `size`; its tokens are then in the decoder's `sampled`, in the order returned.

        Also says whether a graph was replayed for it.
        """
        order = self._decoder.order(batch)
        packed = [batch[index] for index in order]
        self._fill(packed, size)
        graph = self._graphs.get(size)
        if graph is not None:
            graph.replay()
        else:
            self._pass(size, packed)
        return order, graph is not None

    def _fill(self, packed: Sequence[SequenceInput], size: int) -> None:
        """Write the rows and send them. The host does not wait: torch keeps the pinned copy until it has been read."""
        decoder, rows, n = self._decoder, self._rows, len(packed)
        block_size = decoder.block_size
        starts = [one.start for one in packed]
        rows[:n, _TOKEN] = [one.tokens[0] for one in packed]
        rows[:n, _SOURCE] = decoder.sources(packed)
        rows[:n, _POSITION] = starts
        rows[:n, _SLOT] = [one.blocks[one.start // block_size] * block_size + one.start % block_size for one in packed]
        rows[:n, _CONTEXT] = [start + 1 for start in starts]
        for row, one in enumerate(packed):
            # A sequence mostly keeps its row, and changes its blocks once in `block_size` steps.
            if one.blocks != self._held[row]:
                blocks = list(one.blocks)
                width = min(len(blocks), self._capacity)
                rows[row, _BLOCKS : _BLOCKS + width] = blocks[:width]
                self._held[row] = blocks
        rows[n:size, : _BLOCKS + 1] = self._padding
        self._held[n:size] = [[]] * (size - n)
        # Of the block tables as much as the longest one fills: behind it nothing is read.
        width = _BLOCKS + min(max((len(one.blocks) for one in packed), default=1), self._capacity)
        staged = torch.empty((size, width), dtype=self._inputs.dtype, pin_memory=self._inputs.is_cuda)
        staged.numpy()[:] = rows[:size, :width]
        self._inputs[:size, :width].copy_(staged, non_blocking=True)

    def _pass(self, size: int, packed: Sequence[SequenceInput] = ()) -> None:
        """A forward pass over the first rows. What is captured depends on `size` alone, and not on `packed`."""
        decoder = self._decoder
        head = self._inputs[:size, :_BLOCKS].t().contiguous()
        plan: AttentionPlan | PagedPlan
        if self._paged:
            plan = PagedPlan(
                query_starts=self._starts[: size + 1],
                contexts=head[_CONTEXT],
                table=self._inputs[:size, _BLOCKS:],
                tiles=self._starts.new_empty(0, 2),
                decodes=size,
                splits=decode_splits(size, decoder.model.kv_heads, decoder.device),
            )
        else:
            spare = size - len(packed)
            contexts = [one.start + 1 for one in packed] + [1] * spare
            blocks = [one.blocks for one in packed] + [[decoder.padding_block]] * spare
            plan = decoder.plan([1] * size, contexts, blocks)
        order = list(range(size))
        decoder.sample(
            Layout(head[_TOKEN], head[_POSITION], head[_SLOT], self._starts[:size], plan, order, head[_SOURCE])
        )

    def _capture(self, size: int, stream: torch.cuda.Stream, pool: tuple[int, int]) -> Capture:
        # Kernels are compiled and libraries find their workspace before: neither may happen in a capture.
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self._pass(size)
        torch.cuda.synchronize()
        gc.collect()
        torch.cuda.empty_cache()
        free, _ = torch.cuda.mem_get_info()
        begin = perf_counter()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool, stream=stream):
            self._pass(size)
        graph.replay()
        torch.cuda.synchronize()
        seconds = perf_counter() - begin
        self._graphs[size] = graph
        return Capture(size, seconds, free - torch.cuda.mem_get_info()[0])
