"""Products of a few tokens with a large weight: what counts is that the weight streams through, and never stops.

A program takes `rows` of the weight, or one part of their length where there are too few rows for the device; the
parts are summed by the kernel behind. It asks for its first weights before the kernel ahead has ended.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from calibrate.kernels.gpu.early_start import await_previous, let_next_start, starts_early
from calibrate.kernels.gpu.launcher import Launcher, power_of_two

_LINE = 64  # numbers of two bytes that a line of the cache holds


@dataclass(frozen=True)
class Tiling:
    """How a weight is cut: `rows` × `depth` at a time, `stages` of them on their way, until `programs` are at work.

    `ahead`: of each row so many numbers are fetched into the cache before the kernel ahead has ended.
    """

    rows: int
    depth: int
    stages: int
    warps: int
    programs: int
    ahead: int


# By the number of tokens up to which they hold.
TILINGS = {
    32: Tiling(64, 128, 5, 4, 256, 512),
    64: Tiling(64, 64, 5, 4, 256, 512),
}
GATED_TILINGS = {
    32: Tiling(64, 128, 3, 4, 1, 512),
    64: Tiling(64, 64, 4, 4, 1, 512),
}


def fits(tokens: int, weight: torch.Tensor, *, gated: bool = False) -> bool:
    """Whether there is a tiling for so many tokens, and the weight is whole tiles."""
    tiling = tiling_of(tokens, gated=gated)
    outputs, inputs = weight.shape
    return tiling is not None and outputs // (2 if gated else 1) % tiling.rows == 0 and inputs % tiling.depth == 0


def tiling_of(tokens: int, *, gated: bool = False) -> Tiling | None:
    tilings = GATED_TILINGS if gated else TILINGS
    return next((tiling for most, tiling in tilings.items() if tokens <= most), None)


def parts_of(weight: torch.Tensor, tiling: Tiling) -> int:
    """Into how many parts its inputs are cut, for as many programs as are wanted: a power of two that divides them."""
    outputs, inputs = weight.shape
    parts = 1
    while outputs // tiling.rows * parts < tiling.programs and inputs % (2 * parts * tiling.depth) == 0:
        parts *= 2
    return parts


def skinny_linear(x: torch.Tensor, weight: torch.Tensor, *, in_parts: bool) -> torch.Tensor:
    """[T, inputs], [outputs, inputs] → [parts, T, outputs] to be summed: float32, or of x's type where it is one."""
    tokens = len(x)
    tiling = tiling_of(tokens)
    assert tiling is not None
    parts = parts_of(weight, tiling) if in_parts else 1
    out = x.new_empty(parts, tokens, len(weight), dtype=torch.float32 if parts > 1 else x.dtype)
    _launch(x, weight, out, tiling, outputs=len(weight), parts=parts, gated=False)
    return out


def skinny_gated(x: torch.Tensor, gate_up: torch.Tensor) -> torch.Tensor:
    """silu(gate · x) · (up · x), gate above up in one weight: [T, inputs], [2·outputs, inputs] → [T, outputs]."""
    tokens = len(x)
    tiling = tiling_of(tokens, gated=True)
    assert tiling is not None
    out = x.new_empty(tokens, len(gate_up) // 2)
    _launch(x, gate_up, out, tiling, outputs=len(gate_up) // 2, parts=1, gated=True)
    return out


def _launch(
    x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor, tiling: Tiling, *, outputs: int, parts: int, gated: bool
) -> None:
    tokens, inputs = x.shape
    early = starts_early(x.device)
    length = inputs // parts
    # As many as a vector of Triton's may have, which is a power of two.
    lines = 1 << (min(tiling.ahead, length) // _LINE).bit_length() - 1 if early else 0
    padded = max(16, power_of_two(tokens))
    _launcher(
        (outputs // tiling.rows, parts, 1),
        (x, weight, out, tokens),
        (outputs, inputs, length, gated, tiling.rows, tiling.depth, padded, lines, _LINE, early),
        num_warps=tiling.warps,
        num_stages=tiling.stages,
        launch_pdl=early,
    )


@triton.jit
def _fetch(cells: tl.tensor) -> None:
    """Ask for the lines that hold these cells, and do not wait for them."""
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [cells.to(tl.int64)], dtype=tl.int32, is_pure=False, pack=1
    )


@triton.jit(do_not_specialize=["tokens"])
def _skinny_linear(
    x: tl.tensor,
    weight: tl.tensor,
    out: tl.tensor,
    tokens: tl.tensor,
    OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr,
    LENGTH: tl.constexpr,  # inputs of a part
    GATED: tl.constexpr,
    ROWS: tl.constexpr,
    DEPTH: tl.constexpr,
    TOKENS: tl.constexpr,
    AHEAD: tl.constexpr,  # lines of each row
    LINE: tl.constexpr,
    EARLY: tl.constexpr,
) -> None:
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    begin = tl.program_id(1) * LENGTH
    of_rows = weight + rows.to(tl.int64)[:, None] * INPUTS + begin
    if AHEAD > 0:
        lines = of_rows + tl.arange(0, AHEAD)[None, :] * LINE
        _fetch(lines)
        if GATED:
            _fetch(lines + OUTPUTS * INPUTS)
    await_previous(EARLY)

    depth = tl.arange(0, DEPTH)[None, :]
    token = tl.arange(0, TOKENS)
    of_tokens = x + token[:, None] * INPUTS + begin
    inside = token[:, None] < tokens
    total = tl.zeros([ROWS, TOKENS], tl.float32)
    gated = tl.zeros([ROWS, TOKENS], tl.float32)
    for start in range(0, LENGTH, DEPTH):
        values = tl.trans(tl.load(of_tokens + start + depth, mask=inside, other=0.0))
        total = tl.dot(tl.load(of_rows + start + depth), values, total, input_precision="ieee")
        if GATED:
            up = tl.load(of_rows + OUTPUTS * INPUTS + start + depth)
            gated = tl.dot(up, values, gated, input_precision="ieee")
    let_next_start(EARLY)
    if GATED:
        # Rounded as they are where gate and up lie in memory in between.
        gate = total.to(out.dtype.element_ty).to(tl.float32)
        total = gate * tl.sigmoid(gate) * gated.to(out.dtype.element_ty).to(tl.float32)
    cells = out + (tl.program_id(1) * tokens + token)[None, :] * OUTPUTS + rows[:, None]
    tl.store(cells, total.to(out.dtype.element_ty), mask=(token < tokens)[None, :])


_launcher = Launcher(_skinny_linear)
