"""The activation of a gated MLP (SwiGLU; Shazeer, 2020)."""

import torch

from calibrate.kernels.backend import uses_triton


def silu_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """[T, 2·intermediate], gate beside up → silu(gate) · up, [T, intermediate]."""
    if uses_triton(gate_up.device):
        from calibrate.kernels.gpu import silu_mul as gpu

        return gpu.silu_mul(gate_up)
    gate, up = gate_up.chunk(2, dim=-1)
    return torch.nn.functional.silu(gate).mul_(up)
