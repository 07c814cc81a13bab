"""What a fleet's weight caches did, in numbers: from the events of `sim.fleet.weights.cache`."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl


def compute(requests: pl.DataFrame, events: pl.DataFrame) -> dict[str, Any]:
    """`loads`: loads of weights, those before the run not counted. `bytes`: of them. `evictions`: weights dropped, for
    whatever reason. `hit_rate`: share of the requests that were routed which found the weights of their model.
    `wait`: seconds that these requests waited for weights, 0 where they did not: mean, p99 (numpy's default) and max.
    Null where no request was routed.

    Args:
        requests, events: tables with the columns of `sim.results.tables`.
    """
    why = pl.col("detail").str.split(" ").list.first()
    loads = events.filter((pl.col("kind") == "weights_loaded") & (why != "preload"))
    waits = events.filter((pl.col("kind") == "model_load") & pl.col("request_id").is_not_null())
    routed = int((requests["replica"] >= 0).sum())
    seconds = np.zeros(routed)
    seconds[: len(waits)] = np.sort(waits["seconds"].to_numpy())  # sorted: a sum depends on the order of its terms
    missed = len(waits.filter(why != "behind"))
    return {
        "loads": len(loads),
        "bytes": int(loads["amount"].sum()),
        "evictions": int((events["kind"] == "weights_evicted").sum()),
        "hit_rate": 1 - missed / routed if routed else None,
        "wait": {
            "mean": float(seconds.mean()) if routed else None,
            "p99": float(np.percentile(seconds, 99)) if routed else None,
            "max": float(seconds.max()) if routed else None,
        },
    }
