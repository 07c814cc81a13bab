"""Rotary embedding of new tokens' queries and keys, and their keys and values put into the paged cache."""

import torch

from calibrate.kernels.backend import uses_triton
from calibrate.kernels.rotary import rotary


def rotary_write(
    parts: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, cache: torch.Tensor, slots: torch.Tensor
) -> torch.Tensor:
    """The rotated queries [T, heads, head_dim], whose tokens may lie apart; keys and values go into the cache.

    Shapes: parts [P, T, heads + 2·kv_heads, head_dim] to be summed, the first of which may be overwritten; table rows
    of each token [T, 1, head_dim]; cache of a layer [slots, 2, kv_heads, head_dim]; slots [T].
    """
    if uses_triton(cache.device):
        from calibrate.kernels.gpu import rotary_write as gpu

        return gpu.rotary_write(parts, cos, sin, cache, slots)
    qkv = parts[0]
    for part in parts[1:]:
        qkv.add_(part)
    kv_heads = cache.shape[2]
    heads = qkv.shape[1] - 2 * kv_heads
    rotary(qkv[:, : heads + kv_heads], cos, sin)
    cache.index_copy_(0, slots, qkv[:, heads:].view(-1, 2, *cache.shape[2:]))
    return qkv[:, :heads]
