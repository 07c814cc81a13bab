"""How wrong predictions were, and what they would have cost."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl

from sim.fleet.forecasters.forecaster import LEVELS, Floats

Error = dict[str, Any]


def pinball(load: Floats, quantile: Floats, level: float) -> float:
    """The mean pinball loss (Koenker and Bassett, 1978), in the unit of load.

    level·(load − quantile) where load is more, (1 − level)·(quantile − load) where it is less. It is least for the
    quantile of that level.
    """
    above = load - quantile
    return float(np.maximum(level * above, (level - 1.0) * above).mean())


def errors(predictions: pl.DataFrame) -> Error:
    """The errors of one forecaster's predictions (`backtest.COLUMNS`).

    `mape`: mean of |error| / load, over intervals with a load; it has no meaning where there is none, and
    `without_load` says how many those are. `wape`: sum of |error| / sum of load, over all, null without any load.
    `mae` and `pinball` by level are in the unit of load. `within`: the share of loads between the lowest and the
    highest quantile, which should be the difference of their levels.
    """
    load, mean = predictions["load"].to_numpy(), predictions["mean"].to_numpy()
    wrong = np.abs(load - mean)
    loaded = load > 0
    low, high = (predictions[f"q{level:g}"].to_numpy() for level in (LEVELS[0], LEVELS[-1]))
    return {
        "intervals": len(load),
        "mape": float((wrong[loaded] / load[loaded]).mean()) if loaded.any() else None,
        "without_load": int((~loaded).sum()),
        "wape": float(wrong.sum() / load.sum()) if loaded.any() else None,
        "mae": float(wrong.mean()),
        "pinball": {f"{level:g}": pinball(load, predictions[f"q{level:g}"].to_numpy(), level) for level in LEVELS},
        "within": float(((low <= load) & (load <= high)).mean()),
    }


def replicas(load: Floats, capacity: float) -> np.ndarray:
    """How many replicas serve a load, each up to `capacity`; none where there is no load."""
    # A load that is a whole number of capacities must not need one more for the last bit of a division.
    return np.ceil(load / capacity - 1e-9).astype(np.int64)


def provisioning(needed: np.ndarray, given: np.ndarray, interval: float, gpus: int) -> Error:
    """What `given` replicas cost against those `needed`, interval by interval.

    `gpu_hours` given, `wasted` of them beyond need, `missing` of what was needed; `short` is the share of intervals in
    which some were missing.
    """
    hours = interval / 3600.0 * gpus
    return {
        "gpu_hours": float(given.sum() * hours),
        "wasted": float(np.maximum(given - needed, 0).sum() * hours),
        "missing": float(np.maximum(needed - given, 0).sum() * hours),
        "short": float((given < needed).mean()),
    }


def judged(predictions: pl.DataFrame, interval: float, capacity: float | None, gpus: int) -> Error:
    """`errors` of one forecaster, over all and by intervals ahead.

    With the `capacity` of a replica, also what it would have cost to run as many replicas as its quantiles ask for.
    """
    result = errors(predictions)
    result["by_ahead"] = [
        {"ahead": ahead[0], **errors(part)}
        for ahead, part in sorted(predictions.partition_by("ahead", as_dict=True).items())
    ]
    if capacity is not None:
        needed = replicas(predictions["load"].to_numpy(), capacity)
        result["provisioning"] = {
            f"{level:g}": provisioning(
                needed, replicas(predictions[f"q{level:g}"].to_numpy(), capacity), interval, gpus
            )
            for level in LEVELS
        }
    return result


def references(history: Floats, predictions: pl.DataFrame, interval: float, capacity: float, gpus: int) -> Error:
    """The same without a forecast.

    `needed`: as many replicas as were needed, known beforehand; `fixed`: as many as the history's highest load needs.
    """
    needed = replicas(predictions["load"].to_numpy(), capacity)
    fixed = np.full_like(needed, replicas(history, capacity).max())
    return {
        "needed": provisioning(needed, needed, interval, gpus),
        "fixed": provisioning(needed, fixed, interval, gpus),
    }
