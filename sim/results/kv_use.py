"""How much of a fleet's KV blocks requests held, of those that were there at each time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl


def compute(
    steps: pl.DataFrame,
    by_replica: Sequence[pl.DataFrame],
    *,
    first: float | None,
    last: float | None,
    blocks: int | None,
    replicas: pl.DataFrame | None,
) -> dict[str, Any]:
    """`mean`: blocks held over blocks that were there, both integrated from `first` to `last`; `peak`: the largest
    share held at once, when a step ended or the fleet changed; the fleet is as it was at `last` for steps that ended
    later. A replica that ends gives up what it held. `blocks`: as given. Null where nobody ran a step, or how many
    blocks there are is not known.

    Args:
        steps: `replica`, `end` and `kv_blocks`, in order of the first two.
        by_replica: `start`, `end`, `kv_blocks` and `replica` of each replica that ran a step, in that order, cut to
            [`first`, `last`].
        blocks: of the whole fleet, if it never changes.
        replicas: table with the columns of `sim.results.tables.REPLICAS`, which says better where it knows.
    """
    there = _Blocks(blocks, replicas)
    if first is None or last is None or not by_replica or not there.known:
        return {"blocks": blocks, "mean": None, "peak": None}
    ended = pl.DataFrame(schema={"replica": pl.Int32, "ended": pl.Float64})
    if replicas is not None:
        ended = replicas.select("replica", "ended").filter(pl.col("ended") <= last)
    until = dict(ended.iter_rows())
    capacity = there.integrated(first, last)
    held = sum(_block_seconds(rows, until.get(rows["replica"][0], last)) for rows in by_replica)
    return {
        "blocks": blocks,
        "mean": held / capacity if capacity else None,
        "peak": _peak(steps, ended, there, last),
    }


class _Blocks:
    """How many blocks there are at each time: those of the replicas that are ready and have not ended."""

    def __init__(self, blocks: int | None, replicas: pl.DataFrame | None) -> None:
        self.known = True
        if replicas is None or not len(replicas) or replicas["kv_blocks"].null_count():
            self.known = bool(blocks)
            self.times, self.counts = np.array([-np.inf]), np.array([blocks or 0])
            return
        ready = replicas.filter(pl.col("ready").is_not_null())
        ended = ready.filter(pl.col("ended").is_not_null())
        times = np.concatenate([ready["ready"].to_numpy(), ended["ended"].to_numpy()])
        changes = np.concatenate([ready["kv_blocks"].to_numpy(), -ended["kv_blocks"].to_numpy()])
        self.times, place = np.unique(times, return_inverse=True)
        sums = np.zeros(len(self.times), np.int64)
        np.add.at(sums, place, changes)
        self.counts = np.cumsum(sums)

    def at(self, times: np.ndarray) -> np.ndarray:
        return _latest(self.times, self.counts, times)

    def integrated(self, first: float, last: float) -> float:
        """Blocks times seconds."""
        knots = np.array([first, *self.times[(self.times > first) & (self.times < last)], last])
        return float((self.at(knots[:-1]) * np.diff(knots)).sum())


def _latest(times: np.ndarray, values: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Of values that hold from rising times on, the one that holds at each time; 0 before the first."""
    return np.concatenate(([0], values))[np.searchsorted(times, at, "right")]


def _block_seconds(rows: pl.DataFrame, until: float) -> float:
    """Blocks held by one replica, integrated over time: linear within a run of steps, constant between two."""
    end, held = rows["end"].to_numpy(), rows["kv_blocks"].to_numpy().astype(float)
    previous_end = np.concatenate((rows["start"].to_numpy()[:1], end[:-1]))
    previous = np.concatenate(([0.0], held[:-1]))
    start = np.maximum(rows["start"].to_numpy(), previous_end)
    within = (previous + held) / 2 * (end - start)
    between = previous * (start - previous_end)
    return float((within + between).sum() + held[-1] * max(0.0, until - end[-1]))


def _peak(steps: pl.DataFrame, ended: pl.DataFrame, there: _Blocks, last: float) -> float | None:
    """Largest share held by the fleet at once."""
    held, replica = pl.col("kv_blocks").cast(pl.Int64), pl.col("replica")
    before = pl.when(replica == replica.shift()).then(held.shift()).otherwise(0)
    left = steps.group_by("replica").agg(held.last()).join(ended, on="replica")
    given_up = left.select(end="ended", change=-held)
    changes = pl.concat([steps.select("end", change=held - before), given_up])
    changes = changes.group_by("end").agg(pl.col("change").sum()).sort("end")
    ends = changes["end"].to_numpy()
    times = np.concatenate([ends, there.times[there.times <= last]])
    blocks = there.at(np.minimum(times, last))
    shares = _latest(ends, changes["change"].cum_sum().to_numpy(), times)[blocks > 0] / blocks[blocks > 0]
    return float(shares.max()) if len(shares) else None
