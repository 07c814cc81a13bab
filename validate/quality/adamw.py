"""AdamW: Adam (Kingma and Ba, 2015) whose weight decay is apart from the gradient (Loshchilov and Hutter, 2019)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

_EPSILON = 1e-8


class AdamW:
    """torch's own optimisers load its compiler with their first step, which takes longer than a short training."""

    def __init__(self, parameters: Sequence[torch.Tensor], decay: float, betas: tuple[float, float]) -> None:
        """Matrices decay, vectors do not."""
        self._parameters = parameters
        self._decay = [decay if parameter.dim() > 1 else 0.0 for parameter in parameters]
        self._betas = betas
        self._means = [torch.zeros_like(parameter) for parameter in parameters]
        self._squares = [torch.zeros_like(parameter) for parameter in parameters]
        self._steps = 0

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Go down every parameter's gradient, and clear it."""
        self._steps += 1
        first, second = self._betas
        unbiased_rate = rate / (1 - first**self._steps)
        unbiased = (1 - second**self._steps) ** 0.5
        for parameter, decay, mean, square in zip(
            self._parameters, self._decay, self._means, self._squares, strict=True
        ):
            gradient = parameter.grad
            assert gradient is not None
            mean.lerp_(gradient, 1 - first)
            square.mul_(second).addcmul_(gradient, gradient, value=1 - second)
            parameter.mul_(1 - rate * decay)
            parameter.addcdiv_(mean, (square.sqrt() / unbiased).add_(_EPSILON), value=-unbiased_rate)
            parameter.grad = None
