"""All policies of pruning that one engine has."""

from __future__ import annotations

from typing import Any, Protocol

from pydantic import Field, model_validator

from calibrate.model import ModelShape
from calibrate.pruning import Pruning
from ground.errors import UserError
from ground.spec import Spec
from sim.engine.pruning.early_exit import EarlyExit
from sim.engine.pruning.heavy_hitters import HeavyHitters
from sim.engine.pruning.quantised_kv import QuantisedKv
from sim.engine.pruning.shared_kv import SharedKv
from sim.engine.pruning.skip_layers import SkipLayers
from sim.engine.pruning.skip_mlp import SkipMlp
from sim.engine.pruning.skip_similar import SkipSimilar
from sim.engine.pruning.window import Window

# Two policies that do not go together: what each would do to what the other counts on is not defined.
_APART = (
    ("window", "heavy_hitters"),
    ("early_exit", "skip_similar"),
    ("early_exit", "window"),
    ("early_exit", "heavy_hitters"),
    ("skip_similar", "window"),
    ("skip_similar", "heavy_hitters"),
    ("heavy_hitters", "shared_kv"),
    ("heavy_hitters", "quantised_kv"),
)


class Policy(Protocol):
    def prune(self, pruning: Pruning, model: ModelShape) -> Pruning:
        """What is left out of a model from which `pruning` leaves something out already."""


class PruningSettings(Spec):
    """What is not given is not pruned. A policy sees what those above it leave."""

    skip_layers: SkipLayers | None = Field(default=None, description="layers that no token runs")
    skip_mlp: SkipMlp | None = Field(default=None, description="layers whose MLP no token runs")
    shared_kv: SharedKv | None = Field(default=None, description="layers in a row share keys and values")
    window: Window | None = Field(default=None, description="a token attends to the first and to the last ones")
    heavy_hitters: HeavyHitters | None = Field(
        default=None, description="a sequence keeps a budget of tokens, those attended to the most"
    )
    quantised_kv: QuantisedKv | None = Field(default=None, description="keys and values take one byte a value")
    early_exit: EarlyExit | None = Field(default=None, description="tokens leave once the next token is clear")
    skip_similar: SkipSimilar | None = Field(
        default=None, description="tokens pass by the MLP behind one that changed them little"
    )

    @model_validator(mode="after")
    def _go_together(self) -> PruningSettings:
        given = self.policies
        if not given:
            raise ValueError(f"no policy is given; expected one of {', '.join(type(self).model_fields)}")
        for first, second in _APART:
            if first in given and second in given:
                raise ValueError(f"{first} and {second} are both given; expected one of them")
        return self

    @property
    def policies(self) -> dict[str, Policy]:
        """Those that are given, by name."""
        named = {name: getattr(self, name) for name in type(self).model_fields}
        return {name: policy for name, policy in named.items() if policy is not None}

    def of(self, model: ModelShape) -> Pruning:
        """What all of them leave out of a model.

        Raises:
            UserError: a policy names what the model does not have.
        """
        pruning = Pruning(model.layers)
        for policy in self.policies.values():
            pruning = policy.prune(pruning, model)
        if model.experts and pruning.by_input:
            raise UserError(
                f"engine.pruning.{'early_exit' if pruning.exits else 'skip_similar'} is given and {model.name} is a "
                "mixture of experts; expected a dense model"
            )
        return pruning

    def without_shares(self) -> dict[str, Any]:
        """As a resolved scenario spells it, but for the shares that were given: by this a measured policy is found."""
        spelled = self.model_dump(mode="json", exclude_none=True)
        return {name: {key: value for key, value in one.items() if key != "shares"} for name, one in spelled.items()}

    def most_tokens(self, block_size: int) -> int | None:
        """Tokens of one sequence that are held at most; None: all of them (`Pruning.most_tokens`)."""
        if self.window is not None:
            return self.window.sinks + self.window.window + block_size
        return None if self.heavy_hitters is None else self.heavy_hitters.budget
