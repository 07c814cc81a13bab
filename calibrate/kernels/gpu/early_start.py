"""Kernels that start before their predecessor has ended (programmatic dependent launch, compute capability 9.0 on).

Every kernel of the decoder waits for the one before it ahead of the first byte that this one may have written. Since
each of them waits, the end of the last one means the end of all before it. What a kernel does ahead of its wait costs
no time of its own: it is launched, and weights come nearer.

When a kernel lets the next one start is a matter of speed alone. A large product does so when it has read its weights:
earlier, what the next one fetches would drive out of the cache what this one does, and be driven out before it is used.
"""

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@cache
def starts_early(device: torch.device) -> bool:
    """Whether the device can; a launch says so by `launch_pdl`, and its kernel by `EARLY`."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)


@triton.jit
def let_next_start(EARLY: tl.constexpr) -> None:
    if EARLY:
        gdc_launch_dependents()


@triton.jit
def await_previous(EARLY: tl.constexpr) -> None:
    if EARLY:
        gdc_wait()
