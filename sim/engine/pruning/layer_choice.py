"""Which layers a policy is about: those of a list, or every so many."""

from __future__ import annotations

from pydantic import Field, model_validator

from calibrate.model import ModelShape
from ground.errors import UserError
from ground.spec import Spec


class LayerChoice(Spec):
    layers: tuple[int, ...] | None = Field(default=None, description="layers by number, from 0")
    every: int | None = Field(default=None, gt=1, description="instead of a list: the last of every so many layers")

    @model_validator(mode="after")
    def _one_of_two(self) -> LayerChoice:
        if (self.layers is None) == (self.every is None):
            raise ValueError("expected either layers or every")
        if self.layers is not None and (not self.layers or list(self.layers) != sorted(set(self.layers))):
            raise ValueError(f"layers are {list(self.layers)}; expected rising numbers, at least one")
        return self

    def of(self, model: ModelShape, key: str) -> list[int]:
        """The layers of a model, rising.

        Raises:
            UserError: the model has no such layer, or fewer than `every`; names the `key`.
        """
        if self.every is not None:
            if self.every > model.layers:
                raise UserError(
                    f"engine.pruning.{key}.every is {self.every}; expected at most the {model.layers} layers of "
                    f"{model.name}"
                )
            return list(range(self.every - 1, model.layers, self.every))
        assert self.layers is not None
        check_layers(self.layers, model, f"{key}.layers")
        return list(self.layers)


def check_layers(layers: tuple[int, ...], model: ModelShape, key: str) -> None:
    """Raises UserError: a layer that the model does not have."""
    if layers[0] < 0 or layers[-1] >= model.layers:
        wrong = layers[0] if layers[0] < 0 else layers[-1]
        raise UserError(f"engine.pruning.{key} names layer {wrong}; {model.name} has 0 to {model.layers - 1}")
