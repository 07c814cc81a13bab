"""What the transfer of KV blocks between pools took, in numbers: from the events of `sim.fleet.disaggregation`."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl


def compute(requests: pl.DataFrame, events: pl.DataFrame) -> dict[str, Any]:
    """`share`: of the requests that were routed, those whose prompt came from another replica. `bytes` that were moved.
    `seconds`: how long a transfer took, mean, p99 and max; with blocks sent layer by layer what it took after the
    prompt was computed. `wait`: from when a prompt was computed until the request decoded. Null where none is.

    Args:
        requests, events: tables with the columns of `sim.results.tables`.
    """
    moved, joined = (events.filter(pl.col("kind") == kind) for kind in ("kv_transfer", "joined"))
    routed = int((requests["replica"] >= 0).sum())
    return {
        "share": moved["request_id"].n_unique() / routed if routed else None,
        "bytes": int(moved["amount"].sum()),
        "seconds": _statistics(moved),
        "wait": _statistics(joined),
    }


def _statistics(events: pl.DataFrame) -> dict[str, float | None]:
    seconds = np.sort(events["seconds"].to_numpy())
    if not seconds.size:
        return dict.fromkeys(("mean", "p99", "max"))
    return {
        "mean": float(seconds.mean()),
        "p99": float(np.percentile(seconds, 99)),
        "max": float(seconds[-1]),
    }
