"""Paged attention of a packed batch on a GPU: decodes first, then prefills, keys and values read where they lie."""

from __future__ import annotations

import torch

from calibrate.kernels.gpu.decode_attention import decode_attention
from calibrate.kernels.gpu.paged_plan import PagedPlan
from calibrate.kernels.gpu.prefill_attention import prefill_attention


def paged_attention(query: torch.Tensor, cache: torch.Tensor, block_size: int, plan: PagedPlan) -> torch.Tensor:
    """[T, heads, head_dim], cache of one layer [slots, 2, kv_heads, head_dim] → [T, heads·head_dim]."""
    tokens, heads, head_dim = query.shape
    out = query.new_empty(tokens, heads * head_dim)
    if plan.decodes:
        decode_attention(query, cache, block_size, plan, out)
    if len(plan.tiles):
        prefill_attention(query, cache, block_size, plan, out)
    return out
