"""What every microbenchmark works on: a decoder of the rank's shape, its cache full of data, and batches made up."""

from __future__ import annotations

import random
from dataclasses import replace

import torch

from calibrate.decoder import Decoder, SequenceInput
from calibrate.kernels.linear import linear
from calibrate.microbench.grid import Grid, StepShape
from calibrate.microbench.timing import LapTimer
from calibrate.model import ModelShape
from ground.errors import UserError

_KV_POOL_BYTES = {"cpu": 1 << 28, "cuda": 1 << 32}


class Workbench:
    """A decoder with random weights and a random cache, of the shape that one rank runs.

    Sequences draw their blocks from the whole pool, so that neighbours in a sequence lie apart in memory; two
    sequences may read the same block, no sequence reads one twice.

    Raises:
        UserError: the model takes no context as long as the grid's longest.
    """

    def __init__(self, model: ModelShape, grid: Grid, device: str, block_size: int, seed: int) -> None:
        self.grid = grid
        self.device = torch.device(device)
        self.dtype = torch.float32 if model.dtype_bytes == 4 else torch.bfloat16
        longest = max(*grid.prefill_contexts, *grid.decode_contexts) * 5 // 4 + max(grid.chunks)
        if longest > model.max_context:
            raise UserError(
                f"{model.name}: takes contexts of {model.max_context} tokens; the grid measures up to {longest}"
            )
        block_bytes = block_size * model.kv_bytes_per_token()
        blocks = max(-(-longest // block_size) + 1, _KV_POOL_BYTES[self.device.type] // block_bytes)
        self.decoder = Decoder(
            model, device=device, dtype=self.dtype, kv_blocks=blocks, block_size=block_size, seed=seed
        )
        for cache in self.decoder.caches:
            cache.normal_()  # untouched memory is one shared page of zeros, and much too fast to read
        self.timer = LapTimer(self.device)
        self._blocks = range(blocks)
        self._random = random.Random(seed)

    @property
    def model(self) -> ModelShape:
        return self.decoder.model

    def sequence(self, new: int, cached: int) -> SequenceInput:
        """A sequence of random tokens behind `cached` ones that the cache already holds."""
        blocks = self._random.sample(self._blocks, -(-(new + cached) // self.decoder.block_size))
        return SequenceInput([self._random.randrange(self.model.vocab) for _ in range(new)], cached, blocks)

    def batch(self, shape: StepShape) -> list[SequenceInput]:
        """Decoding sequences first, then the prefills."""
        decodes = [self.sequence(1, context) for context in shape.contexts]
        return decodes + [self.sequence(new, cached) for new, cached in shape.prefills]

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
