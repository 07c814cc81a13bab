"""Lists of integers on their way to the device, all of them in one copy that the host does not wait for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch


def upload(device: torch.device, *lists: Sequence[int] | np.ndarray) -> list[torch.Tensor]:
    """An int32 tensor for each list, in the order of the current stream.

    The pinned memory in between is torch's to keep until the copy has ended, and to use again after it.
    """
    sizes = [len(one) for one in lists]
    host = torch.empty(sum(sizes), dtype=torch.int32, pin_memory=device.type == "cuda")
    end = 0
    for values, size in zip(lists, sizes, strict=True):
        host.numpy()[end : end + size] = values
        end += size
    return list(host.to(device, non_blocking=True).split(sizes))
