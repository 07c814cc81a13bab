"""KV blocks that a run copied, predicted beside measured: how many bytes, and the seconds that were waited for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import polars as pl

from sim.results.folder import Run

# Kinds of events whose `amount` is KV blocks that moved, and whose `detail` says from where to where.
_KINDS = ("copy", "kv_fetch", "kv_write", "kv_store")


@dataclass(frozen=True)
class Copies:
    """All copies of one kind and direction; measured: the mean of the repeats. Seconds are null where nobody knows."""

    what: str
    predicted_bytes: float
    measured_bytes: float
    predicted_seconds: float | None
    measured_seconds: float | None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def copies_of(predicted: Run, measured: Sequence[Run], block_bytes: int) -> list[Copies]:
    """Each direction in which either copied anything; `block_bytes` of a KV block in all layers."""
    ours = _sums(predicted)
    theirs = [_sums(run) for run in measured]
    found = []
    for what in sorted(set(ours).union(*theirs)):
        blocks, seconds = ours.get(what, (0, 0.0))
        repeats = [sums.get(what, (0, 0.0)) for sums in theirs]
        known = [spent for _, spent in repeats if spent is not None]
        found.append(
            Copies(
                what,
                predicted_bytes=float(blocks * block_bytes),
                measured_bytes=sum(count for count, _ in repeats) * block_bytes / len(repeats) if repeats else 0.0,
                predicted_seconds=seconds,
                measured_seconds=sum(known) / len(known) if known else None,
            )
        )
    return found


def _sums(run: Run) -> dict[str, tuple[int, float | None]]:
    """(blocks, seconds) by kind and detail."""
    copied = run.events.filter(pl.col("kind").is_in(_KINDS))
    summed = copied.group_by("kind", "detail").agg(
        pl.col("amount").sum(), pl.col("seconds").sum(), known=pl.col("seconds").count()
    )
    return {
        f"{row['kind']} {row['detail'] or ''}".strip(): (row["amount"], row["seconds"] if row["known"] else None)
        for row in summed.iter_rows(named=True)
    }
