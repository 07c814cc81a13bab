"""Whole layers that no token runs: static depth pruning.

Men et al., "ShortGPT: Layers in Large Language Models are More Redundant Than You Expect" (2024). Which layers are left
out is decided before serving. They hold no weights and keep no keys and values.
"""

from __future__ import annotations

from dataclasses import replace

from calibrate.model import ModelShape
from calibrate.pruning import Pruning
from ground.errors import UserError
from sim.engine.pruning.layer_choice import LayerChoice


class SkipLayers(LayerChoice):
    def prune(self, pruning: Pruning, model: ModelShape) -> Pruning:
        """Raises UserError: no such layer, fewer than `every`, or none is left."""
        skipped = frozenset(self.of(model, "skip_layers"))
        if len(skipped) == model.layers:
            raise UserError(f"engine.pruning.skip_layers names all layers of {model.name}; expected one that runs")
        return replace(pruning, skipped=skipped)
