"""What pruning costs in quality, as measured on the real model: the file `quality.json`, and who was measured in it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from calibrate.model import ModelShape, RopeScaling
from ground.errors import UserError
from ground.spec import Spec, check_spec
from ground.whole_file import whole_file

NOT_MEASURED = "quality not measured"


class Estimate(Spec):
    """A mean over held-out text, and the 95 % interval that resampling its documents gives."""

    mean: float
    low: float
    high: float


class LayerShares(Spec):
    """Of each layer the share of tokens that compute it. A token that does not passes the layer by."""

    attention: tuple[float, ...]
    mlp: tuple[float, ...]


class PolicyQuality(Spec):
    """One policy against the unpruned model, both reading the same held-out text."""

    pruning: dict[str, Any] = Field(description="engine.pruning with every default spelled out")
    kl: Estimate = Field(description="Kullback-Leibler divergence of the pruned from the unpruned, nats a token")
    top1: Estimate = Field(description="share of tokens behind which both find the same token the most likely")
    perplexity: Estimate
    perplexity_ratio: Estimate = Field(description="pruned to unpruned")
    layers: LayerShares | None = Field(default=None, description="over held-out text; where the input decides")
    decoded: LayerShares | None = Field(
        default=None, description="over what the pruned model itself goes on with, token by token"
    )

    @property
    def text(self) -> str:
        """On one line: "top-1 98.2 % (97.9 to 98.5), KL 0.0123, perplexity × 1.01"."""
        top1, ratio = self.top1, self.perplexity_ratio
        agreement = f"{100 * top1.mean:.1f} % ({100 * top1.low:.1f} to {100 * top1.high:.1f})"
        return f"top-1 {agreement}, KL {self.kl.mean:.3g}, perplexity × {ratio.mean:.3g}"


class UnprunedQuality(Spec):
    perplexity: Estimate
    bits_per_byte: Estimate | None = Field(default=None, description="where a token is a byte")


class QualityTable(Spec):
    """All policies that were measured on one model; `model` is its shape, field by field."""

    format: Literal["simctl-quality-1"] = "simctl-quality-1"
    model: dict[str, Any]
    weights: dict[str, Any]
    text: dict[str, Any]
    engine: dict[str, Any]
    unpruned: UnprunedQuality
    policies: list[PolicyQuality]

    def find(self, model: ModelShape, pruning: Mapping[str, Any]) -> PolicyQuality | None:
        """What was measured of a policy; None where it was not, or on a model of another shape.

        `pruning` has every default spelled out, as a resolved scenario's `engine.pruning` has. Its `shares` are no part
        of the policy: they are what is found here.
        """
        if self.shape.differences(model):
            return None
        wanted = _canonical(pruning)
        return next((policy for policy in self.policies if _canonical(policy.pruning) == wanted), None)

    @property
    def shape(self) -> ModelShape:
        """The model's shape."""
        scaling = self.model.get("rope_scaling")
        return ModelShape(**{**self.model, "rope_scaling": None if scaling is None else RopeScaling(**scaling)})

    def write(self, path: Path) -> None:
        """Write the file whole or not at all."""
        text = json.dumps(self.model_dump(mode="json", exclude_none=True), indent=2, allow_nan=False)
        with whole_file(path) as partial:
            partial.write_text(text + "\n", encoding="utf-8")


def read_quality(path: Path) -> QualityTable:
    """Read what `QualityTable.write` wrote.

    Raises:
        UserError: the file cannot be read, or is no such table; names the key.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); expected what simctl validate quality writes"
        ) from error
    except ValueError as error:
        raise UserError(f"{path}: not a JSON file ({error}); expected what simctl validate quality writes") from error
    if not isinstance(data, dict):
        raise UserError(f"{path}: holds a {type(data).__name__}; expected what simctl validate quality writes")
    table = check_spec(QualityTable, data, str(path))
    try:
        layers = table.shape.layers
    except TypeError as error:
        raise UserError(f"{path}: model: {error}; expected the fields of a model's shape") from error
    for policy in table.policies:
        for shares in (policy.layers, policy.decoded):
            if shares is not None and not len(shares.attention) == len(shares.mlp) == layers:
                raise UserError(
                    f"{path}: {_canonical(policy.pruning)} has shares of {len(shares.attention)} and "
                    f"{len(shares.mlp)} layers; expected {layers} of each, as the model has"
                )
    return table


def model_fields(model: ModelShape) -> dict[str, Any]:
    """A model's shape as `QualityTable.model` holds it."""
    return asdict(model)


def _canonical(pruning: Mapping[str, Any]) -> str:
    return json.dumps({name: _without_shares(settings) for name, settings in pruning.items()}, sort_keys=True)


def _without_shares(settings: Any) -> Any:
    if not isinstance(settings, Mapping):
        return settings
    return {key: value for key, value in settings.items() if key != "shares"}
