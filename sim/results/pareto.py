"""The Pareto front: the points that no other point beats."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl

from sim.results.metric_names import Better, describe

# The fronts of a sweep: name → the two metrics that pull against each other, as (x, y) of the picture.
FRONTS: dict[str, tuple[str, str]] = {
    "Cost against goodput": ("cost.per_million_output_tokens", "goodput.requests"),
    "TTFT p99 against throughput": ("ttft.p99", "throughput.output_tokens"),
}


def pareto_front(values: np.ndarray, directions: Sequence[Better]) -> list[int]:
    """Rows of `values` that no other row dominates, in ascending order.

    A row dominates another if it is at least as good in every column and better in one; so equal rows stay together,
    all in or all out. In lexicographic order a row can be dominated only by an earlier one and then also by one that
    is itself on the front, so each row is compared with the front alone: O(n · front).

    Args:
        values: shape (n, d), no NaN.
        directions: for each of the d columns, which way is better: "smaller" or "larger".

    Raises:
        ValueError: a NaN, or directions that are not d times "smaller" or "larger".
    """
    if values.ndim != 2 or values.shape[1] != len(directions) or "neither" in directions:
        raise ValueError(f"values have shape {values.shape}, directions are {directions}; expected one a column")
    if np.isnan(values).any():
        raise ValueError("values hold NaN; leave those points out")
    costs = values * np.array([1.0 if direction == "smaller" else -1.0 for direction in directions])
    front: list[int] = []
    kept = np.empty_like(costs)
    for row in np.lexsort(costs.T[::-1]):
        rivals = kept[: len(front)]
        if not ((rivals <= costs[row]).all(axis=1) & (rivals < costs[row]).any(axis=1)).any():
            kept[len(front)] = costs[row]
            front.append(int(row))
    return sorted(front)


def sweep_fronts(points: pl.DataFrame) -> dict[str, list[int]]:
    """The `FRONTS` of a sweep's table: name → ids (column `point`) of the points on it, in ascending order.

    Failed points and those that lack one of the two metrics are left out, so a front may be empty.
    """
    fronts: dict[str, list[int]] = {}
    for name, pair in FRONTS.items():
        if not {*pair} <= {*points.columns}:
            fronts[name] = []
            continue
        known = points.filter(pl.col("status") == "ok").drop_nulls(pair).sort("point")
        rows = pareto_front(known.select(pair).cast(pl.Float64).to_numpy(), [describe(axis).better for axis in pair])
        fronts[name] = known["point"][rows].to_list()
    return fronts
