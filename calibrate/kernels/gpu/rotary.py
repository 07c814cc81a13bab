"""Rotary embedding in place: both halves of a head are read before either is written."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

_HEADS = 16  # of one program


def rotary(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> None:
    """Rotate [T, heads, head_dim] in place; its tokens may lie apart, the tables [T, 1, head_dim] are contiguous."""
    tokens, heads, head_dim = x.shape
    half = head_dim // 2
    _rotary[(tokens, triton.cdiv(heads, _HEADS))](
        x,
        cos,
        sin,
        x.stride(0),
        HEADS=heads,
        HALF=half,
        HEAD_TILE=_HEADS,
        HALF_TILE=triton.next_power_of_2(half),
    )


@triton.jit
def _rotary(
    x: tl.tensor,
    cos: tl.tensor,
    sin: tl.tensor,
    token_stride: tl.tensor,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
    HEAD_TILE: tl.constexpr,
    HALF_TILE: tl.constexpr,
) -> None:
    token = tl.program_id(0).to(tl.int64)
    heads = tl.program_id(1) * HEAD_TILE + tl.arange(0, HEAD_TILE)
    columns = tl.arange(0, HALF_TILE)
    in_half = columns < HALF
    inside = (heads < HEADS)[:, None] & in_half[None, :]
    # The tables hold every angle twice; the sign of the sine is the rotation's.
    angles = token * 2 * HALF + columns
    first_cos = tl.load(cos + angles, mask=in_half, other=0.0).to(tl.float32)[None, :]
    first_sin = tl.load(sin + angles, mask=in_half, other=0.0).to(tl.float32)[None, :]
    second_cos = tl.load(cos + angles + HALF, mask=in_half, other=0.0).to(tl.float32)[None, :]
    second_sin = tl.load(sin + angles + HALF, mask=in_half, other=0.0).to(tl.float32)[None, :]
    cells = x + token * token_stride + heads[:, None] * (2 * HALF) + columns[None, :]
    first = tl.load(cells, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(cells + HALF, mask=inside, other=0.0).to(tl.float32)
    tl.store(cells, (first * first_cos + second * first_sin).to(x.dtype.element_ty), mask=inside)
    tl.store(cells + HALF, (second * second_cos + first * second_sin).to(x.dtype.element_ty), mask=inside)
