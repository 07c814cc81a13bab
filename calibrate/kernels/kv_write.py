"""Put the keys and values of new tokens into the paged cache."""

import torch


def kv_write(cache: torch.Tensor, slots: torch.Tensor, kv: torch.Tensor) -> None:
    """In place: cache of a layer [slots, 2, kv_heads, head_dim], slots [T], kv [T, 2, kv_heads, head_dim]."""
    cache.index_copy_(0, slots, kv)
