"""What every microbenchmark works on: a decoder of the rank's shape, its cache full of data, and batches made up."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import islice

import torch

from calibrate.decode_graphs import DecodeGraphs
from calibrate.decoder import Decoder, SequenceInput, dtype_of
from calibrate.kernels.linear import linear
from calibrate.microbench.grid import Grid, StepShape
from calibrate.microbench.timing import LapTimer
from calibrate.model import ModelShape
from ground.errors import UserError

_CPU_POOL_BYTES = 1 << 28
# Of what the weights leave of a GPU's memory. A large pool lets every sequence of a batch have blocks of its own: those
# that two of them read come from memory once, and once from the processor's cache.
_GPU_POOL_SHARE = 0.6


class Workbench:
    """A decoder with random weights and a random cache, of the shape that one rank runs; it replays the grid's graphs.

    Sequences draw their blocks from the whole pool, so that neighbours in a sequence lie apart in memory. No sequence
    reads a block twice, and no two of a batch read the same one, as long as the pool has enough for all of them.

    Raises:
        UserError: the model takes no context as long as the grid's longest.
    """

    def __init__(self, model: ModelShape, grid: Grid, device: str, block_size: int, seed: int) -> None:
        self.grid = grid
        self.device = torch.device(device)
        self.dtype = dtype_of(model)
        longest = grid.longest_context
        if longest > model.max_context:
            raise UserError(
                f"{model.name}: takes contexts of {model.max_context} tokens; the grid measures up to {longest}"
            )
        block_bytes = block_size * model.kv_bytes_per_token()
        blocks = max(-(-longest // block_size) + 1, _pool_bytes(self.device, model) // block_bytes)
        self.decoder = Decoder(
            model, device=device, dtype=self.dtype, kv_blocks=blocks, block_size=block_size, seed=seed
        )
        for cache in self.decoder.caches:
            cache.normal_()  # untouched memory is one shared page of zeros, and much too fast to read
        self.captures = (
            DecodeGraphs(self.decoder, grid.graph_sizes, max_context=longest).capture() if grid.graph_sizes else []
        )
        self.timer = LapTimer(self.device)
        self._blocks = range(blocks)
        self._random = random.Random(seed)

    @property
    def model(self) -> ModelShape:
        return self.decoder.model

    def sequence(self, new: int, cached: int) -> SequenceInput:
        """A sequence of random tokens behind `cached` ones that the cache already holds."""
        return self._sequence(new, cached, self._random.sample(self._blocks, self._block_count(new, cached)))

    def batch(self, shape: StepShape) -> list[SequenceInput]:
        """Decoding sequences first, then the prefills."""
        lengths = [*((1, context) for context in shape.contexts), *((new, cached) for new, cached in shape.prefills)]
        counts = [self._block_count(new, cached) for new, cached in lengths]
        if sum(counts) > len(self._blocks):
            return [self.sequence(new, cached) for new, cached in lengths]
        blocks = iter(self._random.sample(self._blocks, sum(counts)))
        return [
            self._sequence(new, cached, list(islice(blocks, count)))
            for (new, cached), count in zip(lengths, counts, strict=True)
        ]

    def _sequence(self, new: int, cached: int, blocks: list[int]) -> SequenceInput:
        return SequenceInput([self._random.randrange(self.model.vocab) for _ in range(new)], cached, blocks)

    def _block_count(self, new: int, cached: int) -> int:
        return -(-(new + cached) // self.decoder.block_size)

    def fresh_tokens(self, batch: list[SequenceInput]) -> list[SequenceInput]:
        """The same batch with other tokens: the blocks stay, as they do from step to step of an engine."""
        return [replace(one, tokens=[self._random.randrange(self.model.vocab) for _ in one.tokens]) for one in batch]

    def random(self, *shape: int) -> torch.Tensor:
        """Fresh normal values of the model's dtype."""
        return torch.randn(shape, device=self.device, dtype=self.dtype)

    def sweep_cache(self, layer_index: int) -> None:
        """Read one layer's weights, as the model does between two calls of the same kernel; not to be timed."""
        layer = self.decoder.weights.layers[layer_index]
        x = linear(self.random(1, self.model.hidden), layer.gate_up_proj)
        linear(x[:, : self.model.intermediate], layer.down_proj)


def _pool_bytes(device: torch.device, model: ModelShape) -> int:
    if device.type == "cpu":
        return _CPU_POOL_BYTES
    free, _ = torch.cuda.mem_get_info(device)
    return int(_GPU_POOL_SHARE * (free - model.weight_bytes()))
