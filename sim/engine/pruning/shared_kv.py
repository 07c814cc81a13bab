"""Layers in a row that read the keys and values of the first of them.

Brandon et al., "Reducing Transformer Key-Value Cache Size with Cross-Layer Attention" (NeurIPS 2024): of a group of g
layers one keeps keys and values, so a token keeps 1/g of the bytes. The others project queries alone. Each layer still
reads keys and values when it attends. (The paper trains its models so; here any model is cut like this, and what that
costs in quality is measured.)
"""

from __future__ import annotations

from dataclasses import replace

from pydantic import Field

from calibrate.model import ModelShape
from calibrate.pruning import Pruning
from ground.errors import UserError
from ground.spec import Spec


class SharedKv(Spec):
    group: int = Field(default=2, gt=1, description="layers that share the keys and values of the first of them")

    def prune(self, pruning: Pruning, model: ModelShape) -> Pruning:
        """Raises UserError: more layers share than the model has."""
        if self.group > model.layers:
            raise UserError(
                f"engine.pruning.shared_kv.group is {self.group}; expected at most the {model.layers} layers of "
                f"{model.name}"
            )
        return replace(pruning, group=self.group)
