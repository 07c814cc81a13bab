"""The gated activation: gate and up are read once, nothing between them reaches memory."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from calibrate.kernels.gpu.early_start import await_previous, let_next_start, starts_early
from calibrate.kernels.gpu.launcher import Launcher

_TILE = 1024


def silu_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """[T, 2·intermediate], gate beside up, contiguous → silu(gate) · up, [T, intermediate]."""
    tokens, width = gate_up.shape
    size = width // 2
    out = gate_up.new_empty(tokens, size)
    early = starts_early(gate_up.device)
    _launcher((tokens, -(-size // _TILE), 1), (gate_up, out), (size, _TILE, early), launch_pdl=early)
    return out


@triton.jit
def _silu_mul(gate_up: tl.tensor, out: tl.tensor, SIZE: tl.constexpr, TILE: tl.constexpr, EARLY: tl.constexpr) -> None:
    let_next_start(EARLY)
    await_previous(EARLY)
    token = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * TILE + tl.arange(0, TILE)
    inside = columns < SIZE
    cells = gate_up + token * 2 * SIZE + columns
    gate = tl.load(cells, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(cells + SIZE, mask=inside, other=0.0).to(tl.float32)
    activated = gate * tl.sigmoid(gate) * up
    tl.store(out + token * SIZE + columns, activated.to(out.dtype.element_ty), mask=inside)


_launcher = Launcher(_silu_mul)
