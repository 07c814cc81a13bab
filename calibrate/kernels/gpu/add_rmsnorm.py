"""The residual sum and the norm behind it in one pass: a program reads a token's row once."""

from __future__ import annotations

import torch
import triton
import triton.language as tl


def add_rmsnorm(x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Add `x` to `residual` in place, and return the sum normalised; both [T, hidden] and contiguous."""
    tokens, size = residual.shape
    out = torch.empty_like(residual)
    tile = triton.next_power_of_2(size)
    # 16 values a thread: two wide loads in flight of each operand.
    warps = max(1, min(16, tile // 512))
    _add_rmsnorm[(tokens,)](x, residual, weight, out, eps, SIZE=size, TILE=tile, num_warps=warps)
    return out


@triton.jit
def _add_rmsnorm(
    x: tl.tensor,
    residual: tl.tensor,
    weight: tl.tensor,
    out: tl.tensor,
    eps: tl.tensor,
    SIZE: tl.constexpr,
    TILE: tl.constexpr,
) -> None:
    columns = tl.arange(0, TILE)
    inside = columns < SIZE
    cells = tl.program_id(0).to(tl.int64) * SIZE + columns
    total = tl.load(x + cells, mask=inside, other=0.0).to(tl.float32)
    total += tl.load(residual + cells, mask=inside, other=0.0).to(tl.float32)
    # The norm takes the sum as the residual keeps it, rounded to the model's type.
    kept = total.to(residual.dtype.element_ty)
    tl.store(residual + cells, kept, mask=inside)
    total = kept.to(tl.float32)
    total *= tl.rsqrt(tl.sum(total * total, axis=0) / SIZE + eps)
    scaled = total * tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + cells, scaled.to(out.dtype.element_ty), mask=inside)
