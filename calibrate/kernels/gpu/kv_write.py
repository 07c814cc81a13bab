"""Put the keys and values of new tokens into the paged cache: one program copies one token's."""

from __future__ import annotations

import torch
import triton
import triton.language as tl


def kv_write(cache: torch.Tensor, slots: torch.Tensor, kv: torch.Tensor) -> None:
    """In place: cache of a layer [slots, 2, kv_heads, head_dim], slots [T], kv [T, 2, kv_heads, head_dim].

    A token's keys and values are contiguous; its neighbour's may lie apart.
    """
    size = cache[0].numel()
    _kv_write[(len(slots),)](cache, slots, kv, kv.stride(0), SIZE=size, TILE=triton.next_power_of_2(size))


@triton.jit(do_not_specialize=["slots"])
def _kv_write(
    cache: tl.tensor,
    slots: tl.tensor,
    kv: tl.tensor,
    token_stride: tl.tensor,
    SIZE: tl.constexpr,
    TILE: tl.constexpr,
) -> None:
    token = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, TILE)
    inside = columns < SIZE
    slot = tl.load(slots + token).to(tl.int64)
    tl.store(cache + slot * SIZE + columns, tl.load(kv + token * token_stride + columns, mask=inside), mask=inside)
