"""Greedy sampling."""

import torch

from calibrate.kernels.backend import uses_triton


def greedy(logits: torch.Tensor) -> torch.Tensor:
    """[S, vocab] → the likeliest token of each sequence, [S]; of equals the first."""
    if uses_triton(logits.device):
        from calibrate.kernels.gpu import sampling as gpu

        return gpu.greedy(logits)
    return logits.argmax(dim=-1)
