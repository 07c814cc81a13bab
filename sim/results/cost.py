"""What a run cost: its GPUs at their prices, for so many tokens and requests."""

from __future__ import annotations

from typing import Any

import polars as pl


def compute(
    total: float | None,
    finished: pl.DataFrame,
    good: pl.DataFrame,
    paid: pl.DataFrame | None,
) -> dict[str, Any]:
    """`total`, and that per million output tokens, per million tokens of prompt and output, per finished request and
    per request that kept the SLO. `pools` and `sites` have each one's part, where there are several.

    Args:
        finished, good: requests that finished, and those of them that kept the SLO.
        paid: what `with_paid` says of a simulated fleet.
    """
    output = int(finished["output_tokens"].sum())
    tokens = output + int(finished["prompt_tokens"].sum())
    numbers: dict[str, Any] = {
        "total": total,
        "per_million_output_tokens": _per(total, output, 1e6),
        "per_million_tokens": _per(total, tokens, 1e6),
        "per_request": _per(total, len(finished)),
        "per_good_request": _per(total, len(good)),
    }
    if total is not None and paid is not None:
        for name in ("pool", "site"):
            parts = (
                paid.filter(pl.col(name).is_not_null()).group_by(name, maintain_order=True).agg(pl.col("cost").sum())
            )
            if len(parts) > 1:
                numbers[f"{name}s"] = dict(parts.iter_rows())
    return numbers


def with_paid(replicas: pl.DataFrame, first: float, last: float, asleep: pl.DataFrame | None = None) -> pl.DataFrame:
    """The replicas with `gpu_seconds` and `cost` of each between two moments; a cost is null without a price. Engines
    that slept (`sim.results.sleeping.stays`) follow as rows of their own, which cost and have no GPU seconds."""
    since, until = pl.col("requested").clip(first, last), pl.col("ended").fill_null(last).clip(first, last)
    seconds = (until - since) * pl.col("gpus")
    paid = replicas.with_columns(gpu_seconds=seconds, cost=seconds / 3600 * pl.col("gpu_hour_price"))
    if asleep is None:
        return paid
    slept = asleep.with_columns(gpu_seconds=pl.lit(0.0), cost=seconds / 3600 * pl.col("gpu_hour_price"))
    return pl.concat([paid, slept])


def _per(total: float | None, count: int, times: float = 1.0) -> float | None:
    return None if total is None or not count else total * times / count
