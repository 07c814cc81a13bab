"""Put the keys and values of new tokens into the paged cache."""

import torch

from calibrate.kernels.backend import uses_triton


def kv_write(cache: torch.Tensor, slots: torch.Tensor, kv: torch.Tensor) -> None:
    """In place: cache of a layer [slots, 2, kv_heads, head_dim], slots [T], kv [T, 2, kv_heads, head_dim]."""
    if uses_triton(cache.device):
        from calibrate.kernels.gpu import kv_write as gpu

        gpu.kv_write(cache, slots, kv)
        return
    cache.index_copy_(0, slots, kv)
