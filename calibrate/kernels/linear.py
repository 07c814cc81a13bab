"""Matrix products with a weight stored as [outputs, inputs]."""

import torch

from calibrate.kernels.backend import uses_triton


def linear(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """[T, inputs], [outputs, inputs] → [T, outputs]."""
    return torch.nn.functional.linear(x, weight)


def product(x: torch.Tensor, weight: torch.Tensor, *, in_parts: bool = True) -> torch.Tensor:
    """The same as a sum that is left to whoever reads it: [parts, T, outputs]; one part unless `in_parts`.

    A GPU computes few tokens in parts of the inputs: a weight of few rows would not keep it busy.
    """
    if uses_triton(x.device):
        from calibrate.kernels.gpu import skinny_linear as gpu

        if gpu.fits(len(x), weight):
            return gpu.skinny_linear(x, weight, in_parts=in_parts)
    return linear(x, weight)[None]


def gate_up_product(x: torch.Tensor, gate_up: torch.Tensor) -> tuple[torch.Tensor, bool]:
    """A gated MLP's first product, [T, inputs], [2·intermediate, inputs]; and whether it is activated already.

    [T, intermediate] then, which a GPU computes in one kernel where tokens are few; else [T, 2·intermediate].
    """
    if uses_triton(x.device):
        from calibrate.kernels.gpu import skinny_linear as gpu

        if gpu.fits(len(x), gate_up, gated=True):
            return gpu.skinny_gated(x, gate_up), True
    return linear(x, gate_up), False
