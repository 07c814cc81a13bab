"""What a setting's pruning costs in quality, as far as anybody measured it."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from calibrate.model import load_model
from calibrate.quality import NOT_MEASURED, Estimate, QualityTable, read_quality
from ground.errors import UserError
from sim.study.scenario import Scenario, lookup
from sim.study.search.objectives import BOUNDS, QUALITY

_EXACT = {"quality.top1": 1.0, "quality.kl": 0.0, "quality.perplexity_ratio": 1.0}  # of a model that nothing prunes


def quality_of(scenario: Scenario) -> dict[str, float]:
    """The metrics of `objectives.QUALITY`, with the ends of their intervals. A scenario that prunes nothing answers as
    its model does; its perplexity is known only where the file has it.

    Raises:
        UserError: it prunes, and nobody measured that; or the file of measurements cannot be read.
    """
    pruning = lookup(scenario.resolved(), "engine.pruning") or {}
    table = _read(scenario.quality) if scenario.quality is not None else None
    model = load_model(scenario.model)
    if not pruning:
        values = {f"{name}{end}": value for name, value in _EXACT.items() for end in ("", *(f".{b}" for b in BOUNDS))}
        if table is not None and not table.shape.differences(model):
            values |= _ends("quality.perplexity", table.unpruned.perplexity)
        return values
    found = table.find(model, pruning) if table is not None else None
    if found is None:
        where = "the scenario names no quality.json" if scenario.quality is None else f"it is not in {scenario.quality}"
        raise UserError(f"{NOT_MEASURED}: {where}")
    return {key: value for name in QUALITY for key, value in _ends(name, _estimate(found, name)).items()}


def _estimate(found: object, name: str) -> Estimate:
    estimate: Estimate = getattr(found, name.removeprefix("quality."))
    return estimate


def _ends(name: str, estimate: Estimate) -> dict[str, float]:
    return {name: estimate.mean, f"{name}.low": estimate.low, f"{name}.high": estimate.high}


@lru_cache(maxsize=4)
def _read(path: str) -> QualityTable:
    return read_quality(Path(path))
