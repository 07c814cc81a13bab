"""The norm of each query and key head before the rotation (Qwen3)."""

import torch

from calibrate.kernels.backend import uses_triton
from calibrate.kernels.rmsnorm import rmsnorm


def qk_norm(
    qkv: torch.Tensor, query_norm: torch.Tensor, key_norm: torch.Tensor, heads: int, kv_heads: int, eps: float
) -> None:
    """In place: [T, heads + 2·kv_heads, head_dim], queries by one weight [head_dim] and keys by the other."""
    if uses_triton(qkv.device):
        from calibrate.kernels.gpu import qk_norm as gpu

        gpu.qk_norm(qkv, query_norm, key_norm, heads, kv_heads, eps)
        return
    qkv[:, :heads] = rmsnorm(qkv[:, :heads], query_norm, eps)
    keys = qkv[:, heads : heads + kv_heads]
    qkv[:, heads : heads + kv_heads] = rmsnorm(keys, key_norm, eps)
