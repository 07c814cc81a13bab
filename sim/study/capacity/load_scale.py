"""How much load a scenario's trace is, and the same scenario with more or less of it."""

from __future__ import annotations

import math
from typing import Any, Literal

from ground.errors import UserError
from sim.study.scenario import lookup, override
from sim.study.search.space import Setting
from traces.table import Trace

By = Literal["stretch", "superpose"]


def offered_rate(trace: Trace) -> float:
    """Requests a second that arrive by themselves, between the first and the last; those that another's end releases
    follow it.

    Raises:
        UserError: fewer than two arrive, or all at one instant.
    """
    arrivals = trace.requests["arrival"].drop_nulls().to_numpy()
    span = float(arrivals.max() - arrivals.min()) if len(arrivals) else 0.0
    if not span > 0:
        raise UserError(f"{trace.source}: {len(arrivals)} arrivals within {span:g} s; expected a trace that has a rate")
    return (len(arrivals) - 1) / span


def scaled_load(scenario: dict[str, Any], setting: Setting, factor: float, by: By) -> dict[str, Any]:
    """`trace.scale` of the scenario under `setting` with `factor` times its load.

    "stretch" makes the same requests come faster, and the trace shorter. "superpose" lays copies over each other and
    thins them: the trace spans the same time, and its bursts even out as copies do.
    """
    given = lookup(override(scenario, setting, "the scenario"), "trace.scale")
    scale: dict[str, Any] = dict(given) if isinstance(given, dict) else {}
    if by == "stretch":
        return {**scale, "stretch": (scale.get("stretch") or 1.0) / factor}
    copies = math.ceil(factor)
    return {
        **scale,
        "thin": (scale.get("thin") or 1.0) * factor / copies,
        "copies": (scale.get("copies") or 1) * copies,
    }
