"""The numbers of a run's memory table: how much was reserved, whether it grows, and how much of it lies idle."""

from __future__ import annotations

import numpy as np
import polars as pl

_WARM_UP = 60.0  # seconds in which any allocator grows to what its steps need
_NAMES = ("reserved_peak", "reserved_end", "growth", "fragmentation")


def compute(memory: pl.DataFrame, end: float | None) -> dict[str, float | None]:
    """From a table with the columns of `sim.results.tables.MEMORY`; its rows hold until the next, the last until `end`.

    - `reserved_peak`, `reserved_end`: bytes, of the replica that has the most.
    - `growth`: bytes a minute, the slope of the straight line that is nearest to `reserved` over all time from a minute
      after the first row on (least squares); of the replica that grows the fastest.
    - `fragmentation`: external, 1 - active / reserved, averaged over time and then over replicas.

    All null where no request finished.
    """
    if memory.is_empty() or end is None:
        return dict.fromkeys(_NAMES)
    replicas = memory.sort("replica", "time", maintain_order=True).partition_by("replica", maintain_order=True)
    growth = [slope for rows in replicas if (slope := _growth(rows, end)) is not None]
    fragmentation = [share for rows in replicas if (share := _fragmentation(rows, end)) is not None]
    return {
        "reserved_peak": float(max(_column(rows, "reserved").max() for rows in replicas)),
        "reserved_end": float(max(_column(rows, "reserved")[-1] for rows in replicas)),
        "growth": max(growth, default=None),
        "fragmentation": float(np.mean(fragmentation)) if fragmentation else None,
    }


def _column(rows: pl.DataFrame, name: str) -> np.ndarray:
    return rows[name].to_numpy().astype(float)


def _spans(rows: pl.DataFrame, begin: float, end: float) -> tuple[np.ndarray, np.ndarray]:
    """When each row begins and ceases to hold, within [begin, end]."""
    times = _column(rows, "time")
    return np.clip(times, begin, end), np.clip(np.append(times[1:], np.inf), begin, end)


def _growth(rows: pl.DataFrame, end: float) -> float | None:
    begin = float(rows["time"][0]) + _WARM_UP
    length = end - begin
    if length <= 0.0:
        return None
    since, until = _spans(rows, begin, end)
    middle = (begin + end) / 2
    # The integral of (t - middle) · reserved over that of (t - middle)², which is length³ / 12.
    moments = ((until - middle) ** 2 - (since - middle) ** 2) / 2
    reserved = _column(rows, "reserved")
    return float(60.0 * 12.0 * ((reserved - reserved[-1]) * moments).sum() / length**3)


def _fragmentation(rows: pl.DataFrame, end: float) -> float | None:
    begin = float(rows["time"][0])
    if end <= begin:
        return None
    since, until = _spans(rows, begin, end)
    reserved = _column(rows, "reserved")
    idle = 1.0 - np.divide(_column(rows, "active"), reserved, out=np.ones(len(rows)), where=reserved > 0)
    return float((idle * (until - since)).sum() / (end - begin))
