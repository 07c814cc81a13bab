"""The residual sum and the norm behind it in one pass: a program reads a token's row once."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from calibrate.kernels.gpu.early_start import await_previous, let_next_start, starts_early
from calibrate.kernels.gpu.launcher import Launcher, power_of_two


def add_rmsnorm(parts: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Add the parts [P, T, hidden] to `residual` [T, hidden] in place; the sum normalised. All are contiguous."""
    tokens, size = residual.shape
    out = torch.empty_like(residual)
    tile = power_of_two(size)
    # 16 values a thread: two wide loads in flight of each operand.
    warps = max(1, min(16, tile // 512))
    early = starts_early(residual.device)
    _launcher(
        (tokens, 1, 1),
        (parts, residual, weight, out, eps, tokens),
        (len(parts), size, tile, early),
        num_warps=warps,
        launch_pdl=early,
    )
    return out


@triton.jit(do_not_specialize=["tokens"])
def _add_rmsnorm(
    parts: tl.tensor,
    residual: tl.tensor,
    weight: tl.tensor,
    out: tl.tensor,
    eps: tl.tensor,
    tokens: tl.tensor,
    PARTS: tl.constexpr,
    SIZE: tl.constexpr,
    TILE: tl.constexpr,
    EARLY: tl.constexpr,
) -> None:
    let_next_start(EARLY)
    columns = tl.arange(0, TILE)
    inside = columns < SIZE
    scale = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    await_previous(EARLY)
    cells = tl.program_id(0).to(tl.int64) * SIZE + columns
    total = tl.load(residual + cells, mask=inside, other=0.0).to(tl.float32)
    for part in tl.static_range(PARTS):
        total += tl.load(parts + part * tokens.to(tl.int64) * SIZE + cells, mask=inside, other=0.0).to(tl.float32)
    # The norm takes the sum as the residual keeps it, rounded to the model's type.
    kept = total.to(residual.dtype.element_ty)
    tl.store(residual + cells, kept, mask=inside)
    total = kept.to(tl.float32)
    total *= tl.rsqrt(tl.sum(total * total, axis=0) / SIZE + eps)
    tl.store(out + cells, (total * scale).to(out.dtype.element_ty), mask=inside)


_launcher = Launcher(_add_rmsnorm)
