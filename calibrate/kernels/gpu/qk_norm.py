"""Root-mean-square norm of every query and key head, in place and in one launch."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from calibrate.kernels.gpu.early_start import await_previous, let_next_start, starts_early

_HEADS = 8  # of one program


def qk_norm(
    qkv: torch.Tensor, query_norm: torch.Tensor, key_norm: torch.Tensor, heads: int, kv_heads: int, eps: float
) -> None:
    """[T, heads + 2·kv_heads, head_dim], contiguous: queries by one weight [head_dim], keys by the other."""
    tokens, _, head_dim = qkv.shape
    early = starts_early(qkv.device)
    _qk_norm[(tokens, triton.cdiv(heads + kv_heads, _HEADS))](
        qkv,
        query_norm,
        key_norm,
        qkv.stride(0),
        eps,
        QUERY_HEADS=heads,
        HEADS=heads + kv_heads,
        HEAD_DIM=head_dim,
        HEAD_TILE=_HEADS,
        TILE=triton.next_power_of_2(head_dim),
        EARLY=early,
        launch_pdl=early,
    )


@triton.jit
def _qk_norm(
    qkv: tl.tensor,
    query_norm: tl.tensor,
    key_norm: tl.tensor,
    token_stride: tl.tensor,
    eps: tl.tensor,
    QUERY_HEADS: tl.constexpr,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HEAD_TILE: tl.constexpr,
    TILE: tl.constexpr,
    EARLY: tl.constexpr,
) -> None:
    let_next_start(EARLY)
    await_previous(EARLY)
    heads = tl.program_id(1) * HEAD_TILE + tl.arange(0, HEAD_TILE)
    columns = tl.arange(0, TILE)
    inside = (heads < HEADS)[:, None] & (columns < HEAD_DIM)[None, :]
    cells = qkv + tl.program_id(0).to(tl.int64) * token_stride + heads[:, None] * HEAD_DIM + columns[None, :]
    x = tl.load(cells, mask=inside, other=0.0).to(tl.float32)
    x *= tl.rsqrt(tl.sum(x * x, axis=1) / HEAD_DIM + eps)[:, None]
    of_query = tl.load(query_norm + columns, mask=columns < HEAD_DIM, other=0.0).to(tl.float32)
    of_key = tl.load(key_norm + columns, mask=columns < HEAD_DIM, other=0.0).to(tl.float32)
    weight = tl.where((heads < QUERY_HEADS)[:, None], of_query[None, :], of_key[None, :])
    tl.store(cells, (x * weight).to(qkv.dtype.element_ty), mask=inside)
