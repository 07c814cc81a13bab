"""A Llama-family decoder with a paged KV cache: what the microbenchmarks time is what the real engine runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from calibrate.kernels.attention import AttentionPlan, paged_attention, plan_decodes, plan_prefill
from calibrate.kernels.embedding import embedding
from calibrate.kernels.kv_write import kv_write
from calibrate.kernels.linear import linear
from calibrate.kernels.rmsnorm import add_rmsnorm, rmsnorm
from calibrate.kernels.rotary import rotary, rotary_tables
from calibrate.kernels.sampling import greedy
from calibrate.kernels.silu_mul import silu_mul
from calibrate.model import ModelShape
from calibrate.weights import DecoderWeights, load_weights, random_weights
from ground.errors import UserError

# Keys and values that one decode tile gathers: half of a core's second-level cache, and a few tiles a GPU step.
_TILE_BYTES = {"cpu": 1 << 20, "cuda": 1 << 28}


@dataclass(frozen=True)
class SequenceInput:
    """One sequence of a step: its new tokens, behind `start` cached ones, kept in the physical `blocks`.

    `blocks` cover `start + len(tokens)` tokens; whole leading blocks may be shared with other sequences.
    """

    tokens: Sequence[int]
    start: int
    blocks: Sequence[int]


@dataclass(frozen=True)
class Layout:
    """A packed batch on the device: decoding sequences by falling context, then the prefills."""

    tokens: torch.Tensor  # [T]
    positions: torch.Tensor  # [T]
    slots: torch.Tensor  # [T], where each token's keys and values go
    last: torch.Tensor  # [S], the index of each sequence's last token
    attention: AttentionPlan
    order: list[int]  # batch index of each packed sequence


class Decoder:
    """The model and its KV cache on one device, in greedy decoding.

    `weights` is a safetensors file, or a folder of them, with Hugging Face names; without it the weights are drawn
    from `seed`. Block `b` holds the cache slots `b · block_size` and following.
    """

    def __init__(
        self,
        model: ModelShape,
        *,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        kv_blocks: int,
        block_size: int = 16,
        seed: int = 0,
        weights: Path | None = None,
    ) -> None:
        if model.experts:
            raise UserError(f"{model.name}: a mixture of experts; the decoder runs dense models only")
        self.model = model
        self.device = torch.device(device)
        self.dtype = dtype
        self.block_size = block_size
        self.weights: DecoderWeights = (
            load_weights(weights, model, self.device, dtype)
            if weights is not None
            else random_weights(model, self.device, dtype, seed)
        )
        # Zeros, not empty memory: a padded position is read before it is masked, and NaN would survive the mask.
        self.caches = [
            torch.zeros(kv_blocks * block_size, 2, model.kv_heads, model.head_dim, device=self.device, dtype=dtype)
            for _ in range(model.layers)
        ]
        self.cos, self.sin = rotary_tables(model, self.device, dtype, model.max_context)
        kv_bytes = 2 * model.kv_heads * model.head_dim * dtype.itemsize
        self._tile_tokens = max(block_size, _TILE_BYTES[self.device.type] // kv_bytes)

    @torch.inference_mode()
    def step(self, batch: Sequence[SequenceInput]) -> list[int]:
        """Run one forward pass; return the greedy next token of each sequence. Keys and values are written in place."""
        layout = self.layout(batch)
        next_tokens = [0] * len(batch)
        for index, token in zip(layout.order, self.forward(layout).tolist(), strict=True):
            next_tokens[index] = token
        return next_tokens

    def layout(self, batch: Sequence[SequenceInput]) -> Layout:
        """Pack a batch and plan its attention."""
        decodes = [index for index, sequence in enumerate(batch) if len(sequence.tokens) == 1]
        decodes.sort(key=lambda index: -batch[index].start)
        prefills = [index for index, sequence in enumerate(batch) if len(sequence.tokens) > 1]
        order = decodes + prefills
        tokens: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        last: list[int] = []
        spans = []
        size = self.block_size
        for index in order:
            sequence = batch[index]
            start, blocks = sequence.start, sequence.blocks
            new = len(sequence.tokens)
            if new > 1:
                needed = blocks[: -(-(start + new) // size)]
                spans.append(plan_prefill(len(tokens), new, start, needed, device=self.device, dtype=self.dtype))
            tokens.extend(sequence.tokens)
            positions.extend(range(start, start + new))
            slots.extend([blocks[p // size] * size + p % size for p in range(start, start + new)])
            last.append(len(tokens) - 1)
        tiles = plan_decodes(
            [batch[index].start + 1 for index in decodes],
            [batch[index].blocks for index in decodes],
            block_size=size,
            tile_tokens=self._tile_tokens,
            device=self.device,
            dtype=self.dtype,
        )
        packed = torch.tensor([tokens, positions, slots]).to(self.device)
        return Layout(
            packed[0], packed[1], packed[2], torch.tensor(last).to(self.device), AttentionPlan(tiles, spans), order
        )

    def forward(self, layout: Layout) -> torch.Tensor:
        """The next token of each packed sequence, [S], on the device."""
        model, weights, eps = self.model, self.weights, self.model.rms_eps
        cos, sin = self.cos[layout.positions], self.sin[layout.positions]
        residual = embedding(layout.tokens, weights.embedding)
        x = torch.zeros_like(residual)
        for layer, cache in zip(weights.layers, self.caches, strict=True):
            x = add_rmsnorm(x, residual, layer.input_norm, eps)
            qkv = linear(x, layer.qkv_proj).view(len(x), -1, model.head_dim)
            if layer.query_norm is not None and layer.key_norm is not None:
                self.qk_norm(qkv, layer.query_norm, layer.key_norm)
            rotary(qkv[:, : model.heads + model.kv_heads], cos, sin)
            x = self.attention(qkv, cache, layout)
            x = linear(x, layer.o_proj)
            x = add_rmsnorm(x, residual, layer.post_norm, eps)
            x = linear(x, layer.gate_up_proj)
            x = silu_mul(x)
            x = linear(x, layer.down_proj)
        x = add_rmsnorm(x, residual, weights.final_norm, eps)
        return greedy(linear(x[layout.last], weights.lm_head))

    def qk_norm(self, qkv: torch.Tensor, query_norm: torch.Tensor, key_norm: torch.Tensor) -> None:
        """Normalise each query and key head of [T, heads + 2·kv_heads, head_dim] in place (Qwen3)."""
        heads, kv_heads = self.model.heads, self.model.kv_heads
        qkv[:, :heads] = rmsnorm(qkv[:, :heads], query_norm, self.model.rms_eps)
        keys = qkv[:, heads : heads + kv_heads]
        qkv[:, heads : heads + kv_heads] = rmsnorm(keys, key_norm, self.model.rms_eps)

    def attention(self, qkv: torch.Tensor, cache: torch.Tensor, layout: Layout) -> torch.Tensor:
        """Write a layer's new keys and values, then attend: [T, heads + 2·kv_heads, head_dim] → [T, features]."""
        heads, kv_heads = self.model.heads, self.model.kv_heads
        kv_write(cache, layout.slots, qkv[:, heads:].view(-1, 2, kv_heads, self.model.head_dim))
        return paged_attention(qkv[:, :heads], cache, self.block_size, layout.attention)
