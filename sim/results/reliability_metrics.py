"""What failed in a run and what was made of it, in numbers: from the events of `sim/fleet/reliability/`."""

from __future__ import annotations

from typing import Any

import polars as pl


def compute(requests: pl.DataFrame, events: pl.DataFrame, replicas: pl.DataFrame) -> dict[str, Any]:
    """`crashes`: replicas that crashed; `lost`: requests that they had. `down`: mean seconds from a crash until another
    replica served in its place, null where none did. `slowed`: seconds that steps took longer on slow nodes, summed
    over the replicas. `failovers`: requests that the router sent on from a crashed replica. `retries`: attempts that
    clients sent after the first; `timeouts`: attempts that they gave up. `attempts`: those sent by clients, for each
    request that came; null where none did.

    Args:
        requests, events, replicas: tables with the columns of `sim.results.tables`.
    """
    crashed, retried = (events.filter(pl.col("kind") == kind) for kind in ("crashed", "retried"))
    instead = events.filter(pl.col("kind") == "restarted").select("replica")
    started = replicas.join(instead, on="replica").filter(pl.col("ready").is_not_null())
    failovers = int(retried["seconds"].null_count())
    retries = len(retried) - failovers
    came = int(requests["arrival"].count())
    return {
        "crashes": len(crashed),
        "lost": int(crashed["amount"].sum()),
        "down": float((started["ready"] - started["requested"]).to_numpy().mean()) if len(started) else None,
        "slowed": float(events.filter(pl.col("kind") == "slowed")["seconds"].sum()),
        "failovers": failovers,
        "retries": retries,
        "timeouts": int((events["kind"] == "timed_out").sum()),
        "attempts": (came + retries) / came if came else None,
    }
