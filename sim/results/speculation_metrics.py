"""What speculative decoding brought, in numbers: from the events of `sim.engine.speculative`."""

from __future__ import annotations

from typing import Any

import polars as pl


def compute(steps: pl.DataFrame, events: pl.DataFrame) -> dict[str, Any]:
    """`drafted`: tokens that were guessed and verified; `acceptance`: the share of them that was accepted;
    `tokens_per_step`: mean tokens that a decoding sequence gains in a step; `seconds`: what drafting took, 0 where
    nobody took its time. Null where none is.

    Args:
        steps, events: tables with the columns of `sim.results.tables`.
    """
    drafted, accepted = (events.filter(pl.col("kind") == kind) for kind in ("drafted", "accepted"))
    guessed, kept = int(drafted["amount"].sum()), int(accepted["amount"].sum())
    decodes = int((steps["decode_seqs"].cast(pl.Int64) * steps["steps"].cast(pl.Int64)).sum())
    return {
        "drafted": guessed,
        "acceptance": kept / guessed if guessed else None,
        "tokens_per_step": 1 + kept / decodes if decodes else None,
        "seconds": float(drafted["seconds"].sum()),
    }
