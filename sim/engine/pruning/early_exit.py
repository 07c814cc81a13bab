"""Tokens that leave before the last layer, once the next token is clear.

Schuster et al., "Confident Adaptive Language Modeling" (NeurIPS 2022): the confidence is the difference of the two
largest probabilities, computed by the model's own last norm and head behind each of some layers; later layers take keys
and values from the state with which a token left. Tokens of prompts run whole: what follows them is known.

How many leave where depends on model and text: it is measured (`simctl validate quality`), or given, never assumed.
"""

from __future__ import annotations

from dataclasses import replace

from pydantic import Field, model_validator

from calibrate.model import ModelShape
from calibrate.pruning import Pruning
from ground.errors import UserError
from ground.spec import Spec
from sim.engine.pruning.layer_choice import check_layers
from sim.engine.pruning.shares import Shares


class EarlyExit(Spec):
    layers: tuple[int, ...] = Field(min_length=1, description="layers behind which a token may leave, from 0, rising")
    confidence: float = Field(
        default=0.9, gt=0, le=1, description="by how much the likeliest next token must be ahead of the second"
    )
    shares: Shares | None = Field(
        default=None,
        description="of each layer the share of decoding tokens that run it; as the scenario's quality file has it if "
        "not given",
    )

    @model_validator(mode="after")
    def _layers_rise(self) -> EarlyExit:
        if list(self.layers) != sorted(set(self.layers)):
            raise ValueError(f"layers are {list(self.layers)}; expected rising numbers")
        return self

    def prune(self, pruning: Pruning, model: ModelShape) -> Pruning:
        """Raises UserError: no such layer, or nothing runs behind one."""
        check_layers(self.layers, model, "early_exit.layers")
        for layer in self.layers:
            if layer in pruning.skipped or layer >= pruning.kept[-1]:
                raise UserError(
                    f"engine.pruning.early_exit.layers names layer {layer}; expected layers that run, and not the last"
                )
        return replace(pruning, exits=self.layers, confidence=self.confidence)
