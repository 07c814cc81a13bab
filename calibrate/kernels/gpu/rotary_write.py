"""Rotary embedding and the write into the paged cache in one pass over a token's queries, keys and values."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from calibrate.kernels.gpu.early_start import await_previous, let_next_start, starts_early
from calibrate.kernels.gpu.launcher import Launcher, power_of_two

_HEADS = 8  # of one program


def rotary_write(
    parts: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, cache: torch.Tensor, slots: torch.Tensor
) -> torch.Tensor:
    """The rotated queries [T, heads, head_dim]; one part alone is rotated where it lies.

    Shapes: parts [P, T, heads + 2·kv_heads, head_dim], contiguous; table rows of each token [T, 1, head_dim]; cache of
    a layer [slots, 2, kv_heads, head_dim]; slots [T].
    """
    count, tokens, all_heads, head_dim = parts.shape
    kv_heads = cache.shape[2]
    heads = all_heads - 2 * kv_heads
    half = head_dim // 2
    in_place = parts.dtype == cache.dtype
    query = parts[0, :, :heads] if in_place else cache.new_empty(tokens, heads, head_dim)
    early = starts_early(cache.device)
    _launcher(
        (tokens, -(-all_heads // _HEADS), 1),
        (parts, cos, sin, cache, slots, query, query.stride(0), tokens),
        (count, heads, kv_heads, half, _HEADS, power_of_two(half), early),
        launch_pdl=early,
    )
    return query


@triton.jit(do_not_specialize=["slots", "tokens"])
def _rotary_write(
    parts: tl.tensor,
    cos: tl.tensor,
    sin: tl.tensor,
    cache: tl.tensor,
    slots: tl.tensor,
    query: tl.tensor,
    query_stride: tl.tensor,
    tokens: tl.tensor,
    PARTS: tl.constexpr,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HALF: tl.constexpr,
    HEAD_TILE: tl.constexpr,
    HALF_TILE: tl.constexpr,
    EARLY: tl.constexpr,
) -> None:
    let_next_start(EARLY)
    await_previous(EARLY)
    token = tl.program_id(0).to(tl.int64)
    heads = tl.program_id(1) * HEAD_TILE + tl.arange(0, HEAD_TILE)
    columns = tl.arange(0, HALF_TILE)
    in_half = columns < HALF
    inside = (heads < HEADS + 2 * KV_HEADS)[:, None] & in_half[None, :]
    cells = token * (HEADS + 2 * KV_HEADS) * (2 * HALF) + heads[:, None] * (2 * HALF) + columns[None, :]
    first = tl.zeros([HEAD_TILE, HALF_TILE], tl.float32)
    second = tl.zeros([HEAD_TILE, HALF_TILE], tl.float32)
    stride = tokens.to(tl.int64) * (HEADS + 2 * KV_HEADS) * (2 * HALF)
    for part in tl.static_range(PARTS):
        first += tl.load(parts + part * stride + cells, mask=inside, other=0.0).to(tl.float32)
        second += tl.load(parts + part * stride + cells + HALF, mask=inside, other=0.0).to(tl.float32)

    # The tables hold every angle twice; the sign of the sine is the rotation's. Values are not turned.
    angles = token * 2 * HALF + columns
    turned = (heads < HEADS + KV_HEADS)[:, None]
    first_cos = tl.load(cos + angles, mask=in_half, other=0.0).to(tl.float32)[None, :]
    first_sin = tl.load(sin + angles, mask=in_half, other=0.0).to(tl.float32)[None, :]
    second_cos = tl.load(cos + angles + HALF, mask=in_half, other=0.0).to(tl.float32)[None, :]
    second_sin = tl.load(sin + angles + HALF, mask=in_half, other=0.0).to(tl.float32)[None, :]
    low = tl.where(turned, first * first_cos + second * first_sin, first).to(cache.dtype.element_ty)
    high = tl.where(turned, second * second_cos + first * second_sin, second).to(cache.dtype.element_ty)

    is_query = (heads < HEADS)[:, None]
    targets = query + token * query_stride + heads[:, None] * (2 * HALF) + columns[None, :]
    tl.store(targets, low, mask=inside & is_query)
    tl.store(targets + HALF, high, mask=inside & is_query)
    # Keys stand before values in the cache as they do here.
    slot = tl.load(slots + token).to(tl.int64)
    targets = cache + slot * (2 * KV_HEADS * 2 * HALF) + (heads - HEADS)[:, None] * (2 * HALF) + columns[None, :]
    tl.store(targets, low, mask=inside & ~is_query)
    tl.store(targets + HALF, high, mask=inside & ~is_query)


_launcher = Launcher(_rotary_write)
