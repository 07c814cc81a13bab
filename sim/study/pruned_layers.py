"""What of a model's layers a scenario's engine runs: by its policies of pruning, and by what was measured of them."""

from __future__ import annotations

from pathlib import Path

from calibrate.layer_use import LayerUse, layer_use
from calibrate.model import ModelShape
from calibrate.quality import NOT_MEASURED, PolicyQuality, read_quality
from ground.assumption import Assumption
from ground.errors import UserError
from sim.study.scenario import EngineSettings


def resolve_pruning(
    settings: EngineSettings, model: ModelShape, quality: str | None
) -> tuple[LayerUse | None, list[Assumption]]:
    """What runs, None where nothing is pruned; and what was measured of it in the file `quality`.

    Raises:
        UserError: a policy names what the model does not have, or does not go together with another setting; or tokens
            decide what they run, and nobody measured how many do what.
    """
    given = settings.pruning
    if given is None:
        return None, []
    for name in ("overlap_collectives", "memory", "shapes", "weight_offload"):
        if getattr(settings, name, None):
            raise UserError(f"engine.pruning and engine.{name} are both given; expected one of them")
    pruning = given.of(model)
    found = None
    if quality is not None and Path(quality).exists():  # it may be yet to be measured
        found = read_quality(Path(quality)).find(model, given.without_shares())
    measured = NOT_MEASURED if found is None else f"top-1 agreement {found.top1.mean:.4g}"
    source = f"of this policy on {model.name}" if quality is None else f"of this policy on {model.name}, in {quality}"
    word = "assumed" if found is None else "measured"
    stated = [Assumption("engine.pruning.quality", measured, "", word, source)]  # type: ignore[arg-type]
    if not pruning.by_input:
        return layer_use(pruning, settings.block_size), stated
    name, policy = ("early_exit", given.early_exit) if pruning.exits else ("skip_similar", given.skip_similar)
    assert policy is not None
    shares, word = policy.shares, "user"
    if shares is None:
        shares, word = _measured_shares(found, exits=bool(pruning.exits)), "measured"
    if shares is None:
        where = "the scenario names no quality file"
        if quality is not None:
            where = f"{quality} {'does not have this policy' if Path(quality).exists() else 'is not there'}"
        raise UserError(
            f"engine.pruning.{name}: nobody measured which share of tokens runs each layer of {model.name} ({where}); "
            f"expected that, or engine.pruning.{name}.shares"
        )
    text = ", ".join(f"{share:.3g}" for share in shares)
    note = "share of tokens that run each layer" if pruning.exits else "share of tokens that run each layer's MLP"
    stated.append(Assumption(f"engine.pruning.{name}.shares", text, "", word, note))  # type: ignore[arg-type]
    try:
        return layer_use(pruning, settings.block_size, shares), stated
    except UserError as error:
        raise UserError(f"engine.pruning.{name}: {error}") from error


def _measured_shares(found: PolicyQuality | None, *, exits: bool) -> tuple[float, ...] | None:
    """Of tokens that leave early over those that decode, which alone may; else over all."""
    if found is None:
        return None
    if exits:
        by_layer = found.decoded or found.layers
        return None if by_layer is None else by_layer.attention
    return None if found.layers is None else found.layers.mlp
