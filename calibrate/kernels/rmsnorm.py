"""Root-mean-square normalisation (Zhang and Sennrich, 2019), with the residual sum that precedes it in a decoder."""

import torch

from calibrate.kernels.backend import uses_triton


def rmsnorm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Normalise the last dimension: x / sqrt(mean(x²) + eps) · weight."""
    return torch.nn.functional.rms_norm(x, weight.shape, weight, eps)


def add_rmsnorm(parts: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Add the parts [P, T, hidden] to `residual` [T, hidden] in place, and return the sum normalised."""
    if uses_triton(residual.device):
        from calibrate.kernels.gpu import add_rmsnorm as gpu

        return gpu.add_rmsnorm(parts, residual, weight, eps)
    for part in parts:
        residual.add_(part)
    return rmsnorm(residual, weight, eps)
