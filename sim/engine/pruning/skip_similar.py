"""Tokens that pass by an MLP when the one before it changed them little.

The rule looks at the input: the cosine of a token's state before and after an MLP, as Jaiswal et al., "FFN-SkipLLM: A
Hidden Gem for Autoregressive Decoding with Adaptive Feed Forward Skipping" (EMNLP 2024) measure redundancy. They skip
many in a row where it saturates; here a token that passed by one runs the next. Attention, keys and values stay whole.

How many tokens pass by where depends on model and text: it is measured, or given, never assumed.
"""

from __future__ import annotations

from dataclasses import replace

from pydantic import Field

from calibrate.model import ModelShape
from calibrate.pruning import Pruning
from ground.errors import UserError
from ground.spec import Spec
from sim.engine.pruning.shares import Shares


class SkipSimilar(Spec):
    similarity: float = Field(gt=-1, le=1, description="cosine from which on an MLP is taken to have changed little")
    first: int = Field(default=1, ge=1, description="the first layer whose MLP a token may pass by")
    shares: Shares | None = Field(
        default=None,
        description="of each layer the share of tokens that run its MLP; as the scenario's quality file has it if not "
        "given",
    )

    def prune(self, pruning: Pruning, model: ModelShape) -> Pruning:
        """Raises UserError: the model has no layer `first`."""
        if self.first >= model.layers:
            raise UserError(
                f"engine.pruning.skip_similar.first is {self.first}; {model.name} has layers 0 to {model.layers - 1}"
            )
        return replace(pruning, similarity=self.similarity, first=self.first)
