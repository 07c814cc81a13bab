"""Paged attention of a packed batch: prefill behind a cached prefix, chunked prefill and decode in one call.

Decoding sequences come first in the batch, longest context first, and are cut into tiles of neighbours. A tile gathers
the blocks of its sequences into one padded tensor. Sorting keeps the padding small, and a bounded tile keeps the
gathered keys and values in the processor's cache, so that the cost stays linear in the tokens read, as the latency
tables assume. Each prefill is attended by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import scaled_dot_product_attention

from calibrate.kernels.gpu.paged_plan import PagedPlan


@dataclass(frozen=True)
class DecodeTile:
    """Sequences `first` to `last` (exclusive): block table [n, blocks], additive bias [n, 1, 1, blocks·block_size]."""

    first: int
    last: int
    table: torch.Tensor
    bias: torch.Tensor


@dataclass(frozen=True)
class PrefillSpan:
    """Tokens `first` to `last` (exclusive) of the batch are one sequence whose context ends at `context`.

    `bias` [new tokens, context] hides the future; None where nothing is cached and plain causal attention does.
    """

    first: int
    last: int
    context: int
    blocks: torch.Tensor
    bias: torch.Tensor | None


@dataclass(frozen=True)
class AttentionPlan:
    """How the packed tokens of a batch attend; built once a step, used by every layer."""

    tiles: list[DecodeTile]
    prefills: list[PrefillSpan]


def plan_decodes(
    contexts: Sequence[int],
    blocks: Sequence[Sequence[int]],
    *,
    block_size: int,
    tile_tokens: int,
    device: torch.device,
    dtype: torch.dtype,
) -> list[DecodeTile]:
    """Cut sequences, sorted by falling context (the new token included), into tiles of at most `tile_tokens`.

    A context longer than that makes a tile of its own.
    """
    tiles = []
    first = 0
    while first < len(contexts):
        width = -(-contexts[first] // block_size)
        last = min(len(contexts), first + max(1, tile_tokens // (width * block_size)))
        rows = [list(row[:width]) + [0] * (width - len(row)) for row in blocks[first:last]]
        ends = torch.tensor(contexts[first:last])[:, None]
        hidden = torch.arange(width * block_size) >= ends
        bias = torch.zeros(hidden.shape, dtype=dtype).masked_fill_(hidden, -torch.inf)
        tiles.append(DecodeTile(first, last, torch.tensor(rows).to(device), bias[:, None, None].to(device)))
        first = last
    return tiles


def plan_prefill(
    first: int, tokens: int, start: int, blocks: Sequence[int], *, device: torch.device, dtype: torch.dtype
) -> PrefillSpan:
    """A prefill of `tokens` new tokens that stand at `first` in the batch, behind `start` cached ones."""
    bias = None
    if start:
        future = torch.full((tokens, start + tokens), -torch.inf, device=device, dtype=dtype)
        bias = future.triu_(start + 1)
    return PrefillSpan(first, first + tokens, start + tokens, torch.tensor(blocks).to(device), bias)


def paged_attention(
    query: torch.Tensor,
    cache: torch.Tensor,
    block_size: int,
    plan: AttentionPlan | PagedPlan,
    unpack: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> torch.Tensor:
    """Softmax attention, scale 1/sqrt(head_dim), over the cache into which the new tokens were already written.

    Shapes: query [T, heads, head_dim], cache of one layer [slots, 2, kv_heads, head_dim] → [T, heads·head_dim]. With
    `unpack` the cache's last dimension holds what that makes head_dim values of; on a CPU alone.
    """
    if isinstance(plan, PagedPlan):
        from calibrate.kernels.gpu import attention as gpu

        return gpu.paged_attention(query, cache, block_size, plan)
    tokens, heads, head_dim = query.shape
    kv_heads = cache.shape[2]
    group = heads // kv_heads
    blocks = cache.view(cache.shape[0] // block_size, -1)
    out = query.new_empty(tokens, heads * head_dim)
    for tile in plan.tiles:
        n = tile.last - tile.first
        kv = blocks.index_select(0, tile.table.view(-1)).view(n, -1, 2, kv_heads, cache.shape[3])
        if unpack is not None:
            kv = unpack(kv)
        # The query heads that share a KV head stand as rows of one product: no key is read twice.
        tile_query = query[tile.first : tile.last].reshape(n, kv_heads, group, head_dim)
        attended = scaled_dot_product_attention(
            tile_query, kv[:, :, 0].transpose(1, 2), kv[:, :, 1].transpose(1, 2), attn_mask=tile.bias
        )
        out[tile.first : tile.last] = attended.reshape(n, -1)
    for span in plan.prefills:
        kv = blocks.index_select(0, span.blocks).view(-1, 2, kv_heads, cache.shape[3])[: span.context]
        if unpack is not None:
            kv = unpack(kv)
        # [kv_heads, group, context, head_dim], the group by stride 0: no key is copied.
        keys, values = kv.permute(1, 2, 0, 3)[:, :, None].expand(-1, -1, group, -1, -1)
        span_query = query[span.first : span.last].view(-1, kv_heads, group, head_dim).permute(1, 2, 0, 3)
        attended = scaled_dot_product_attention(
            span_query, keys, values, attn_mask=span.bias, is_causal=span.bias is None
        )
        out[span.first : span.last] = attended.permute(2, 0, 1, 3).reshape(span.last - span.first, -1)
    return out
