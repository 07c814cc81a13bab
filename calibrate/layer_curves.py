"""Seconds of token-wise and per-sequence layers, over the tokens or sequences that pass them."""

from __future__ import annotations

from collections.abc import Iterable

from calibrate.curve import Curve, add
from calibrate.model import LayerCalls
from calibrate.profile import Profile
from ground.errors import UserError


def summed(profile: Profile, calls: Iterable[LayerCalls], kernel_class: str, axis: str) -> Curve:
    """One curve for a whole step: every layer of the class times its calls.

    Raises:
        UserError: the profile lacks the class, or a layer of it.
    """
    curves = []
    for call in calls:
        if call.kernel_class == "moe":
            profile.table("moe")  # says which profile and model lack it
        if call.kernel_class == kernel_class:
            curves.append((call.calls, layer_curve(profile, kernel_class, call.layer, axis)))
    return add(curves)


def layer_curve(profile: Profile, kernel_class: str, layer: str, axis: str) -> Curve:
    """One call of one layer.

    Raises:
        UserError: the profile lacks it.
    """
    table = profile.table(kernel_class)
    rows = table.filter(table["layer"] == layer).sort(axis)
    if rows.is_empty():
        raise UserError(
            f"profile {profile.name}: kernel class {kernel_class} has no layer {layer}, which {profile.shape.name} runs"
        )
    return Curve(rows[axis].to_list(), rows["seconds"].to_list())
