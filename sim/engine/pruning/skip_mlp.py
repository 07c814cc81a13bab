"""MLPs that no token runs: the layer attends, and adds nothing more. Static, and without the MLP's weights."""

from __future__ import annotations

from dataclasses import replace

from calibrate.model import ModelShape
from calibrate.pruning import Pruning
from sim.engine.pruning.layer_choice import LayerChoice


class SkipMlp(LayerChoice):
    def prune(self, pruning: Pruning, model: ModelShape) -> Pruning:
        """Raises UserError: no such layer, or fewer than `every`."""
        return replace(pruning, without_mlp=frozenset(self.of(model, "skip_mlp")))
