"""The activation of a gated MLP (SwiGLU; Shazeer, 2020)."""

import torch


def silu_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """[T, 2·intermediate], gate beside up → silu(gate) · up, [T, intermediate]."""
    gate, up = gate_up.chunk(2, dim=-1)
    return torch.nn.functional.silu(gate).mul_(up)
