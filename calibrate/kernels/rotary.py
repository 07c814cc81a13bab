"""Rotary position embedding (Su et al., 2021) in the half-split layout of Llama checkpoints.

A GPU's is in `calibrate.kernels.gpu.rotary_write`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from calibrate.model import ModelShape


def rotary_tables(
    model: ModelShape, device: torch.device, dtype: torch.dtype, positions: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and signed sines, each [positions, 1, head_dim]; the sign of the first half is the rotation's minus."""
    exponent = torch.arange(0, model.head_dim, 2, dtype=torch.float64) / model.head_dim
    frequency = model.rope_theta**-exponent
    if model.rope_scaling is not None:
        scaling = model.rope_scaling
        wavelength = 2 * math.pi / frequency
        low = scaling.original_max_position / scaling.low_freq_factor
        high = scaling.original_max_position / scaling.high_freq_factor
        # 0 at and above the longest wavelength kept, 1 at and below the shortest, linear in frequency between.
        smooth = scaling.original_max_position / wavelength - scaling.low_freq_factor
        smooth = (smooth / (scaling.high_freq_factor - scaling.low_freq_factor)).clamp(0, 1)
        smooth = torch.where(wavelength > low, 0.0, torch.where(wavelength < high, 1.0, smooth))
        frequency = frequency * (smooth + (1 - smooth) / scaling.factor)
    angle = torch.arange(positions, dtype=torch.float64)[:, None] * frequency
    cos = torch.cat((angle.cos(), angle.cos()), dim=-1)
    sin = torch.cat((-angle.sin(), angle.sin()), dim=-1)
    return cos[:, None].to(device, dtype), sin[:, None].to(device, dtype)


def rotary(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> None:
    """Rotate [T, heads, head_dim] in place by the table rows of each token, [T, 1, head_dim]."""
    first, second = x.chunk(2, dim=-1)
    swapped = torch.cat((second, first), dim=-1)
    x.mul_(cos).addcmul_(swapped, sin)
