"""The numbers of a run's memory table: how much was reserved, whether it grows, and how much of it lies idle."""

from __future__ import annotations

import numpy as np
import polars as pl

_WARM_UP = 60.0  # seconds in which any allocator grows to what its steps need
_NAMES = ("reserved_peak", "reserved_end", "growth", "fragmentation")


def compute(memory: pl.DataFrame, end: float | None, events: pl.DataFrame | None = None) -> dict[str, float | None]:
    """From a table with the columns of `sim.results.tables.MEMORY`; its rows hold until the next, the last until `end`.

    - `reserved_peak`, `reserved_end`: bytes, of the replica that has the most.
    - `growth`: bytes a minute by which a process grows, of the replica whose processes grow the fastest. It is the
      slope of straight lines, one a process and all equally steep, that are nearest to `reserved` over all time from a
      minute after each process began on (least squares). The first begins with the first row; a restart (an event of
      that kind in `events`) ends one and begins the next `seconds` later. Null where none lived for over a minute.
    - `fragmentation`: external, 1 - active / reserved, averaged over time and then over replicas.

    All null where no request finished.
    """
    if memory.is_empty() or end is None:
        return dict.fromkeys(_NAMES)
    replicas = memory.sort("replica", "time", maintain_order=True).partition_by("replica", maintain_order=True)
    growth = [slope for rows in replicas if (slope := _growth(rows, _lives(rows, end, events))) is not None]
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


def _lives(rows: pl.DataFrame, end: float, events: pl.DataFrame | None) -> list[tuple[float, float]]:
    """When each process of one replica began and ceased to be."""
    begins, ends = [float(rows["time"][0])], []
    if events is not None:
        own = (pl.col("kind") == "restart") & (pl.col("replica") == rows["replica"][0]) & (pl.col("time") < end)
        for time, seconds in events.filter(own).sort("time").select("time", "seconds").iter_rows():
            ends.append(time)
            begins.append(time + seconds)
    return list(zip(begins, [*ends, end], strict=True))


def _growth(rows: pl.DataFrame, lives: list[tuple[float, float]]) -> float | None:
    reserved = _column(rows, "reserved")
    # Of each life the integral of (t - middle) · reserved, and of (t - middle)², which is length³ / 12.
    moment = square = 0.0
    for begin, end in lives:
        begin += _WARM_UP
        if end <= begin:
            continue
        since, until = _spans(rows, begin, end)
        middle = (begin + end) / 2
        moments = ((until - middle) ** 2 - (since - middle) ** 2) / 2
        moment += ((reserved - reserved[-1]) * moments).sum()
        square += (end - begin) ** 3 / 12.0
    return 60.0 * float(moment) / square if square else None


def _fragmentation(rows: pl.DataFrame, end: float) -> float | None:
    begin = float(rows["time"][0])
    if end <= begin:
        return None
    since, until = _spans(rows, begin, end)
    reserved = _column(rows, "reserved")
    idle = 1.0 - np.divide(_column(rows, "active"), reserved, out=np.ones(len(rows)), where=reserved > 0)
    return float((idle * (until - since)).sum() / (end - begin))
