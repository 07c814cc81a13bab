"""What autoscaling did, in numbers: how many replicas there were, and when they were too few."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import polars as pl

from sim.results.spans import run_span, union_length

Spans = np.ndarray  # (spans, 2): begin and end


def compute(
    requests: pl.DataFrame,
    steps: pl.DataFrame,
    replicas: pl.DataFrame,
    events: pl.DataFrame,
    *,
    initial: Mapping[str, int],
    asleep: pl.DataFrame | None = None,
) -> dict[str, Any]:
    """All from the first arrival to the last finish; null where nothing arrived or finished.

    `replicas`: mean, max and min of those that were ready and had not ended, over time. `asked`: the mean of those that
    were asked for and had not ended. `gpu_hours`: of these. `asleep_gpu_hours`: of engines that slept. `asleep_cost`:
    of the same, part of the run's cost; null without a price, and where none may sleep. `ups`, `downs`: decisions that
    changed the number that a pool was asked for, which was `initial` at first, by the pool's name. `starts`: replicas
    that became ready after they were asked for; `start`: the mean seconds of that. `under_provisioned`: share of the
    time in which somebody waited for want of a replica, or was left out of a step that began after he had come.

    Args:
        requests, steps, replicas, events: tables with the columns of `sim.results.tables`.
        asleep: `sim.results.sleeping.stays`; None: no engine of the run may sleep.
    """
    begin, end = run_span(requests) or (0.0, 0.0)
    duration = end - begin
    ready = _between(replicas.filter(pl.col("ready").is_not_null()), "ready", begin, end)
    asked_seconds = _seconds(_between(replicas, "requested", begin, end))
    times, counts = _counts(ready, begin, end)
    waited = np.concatenate([_held(requests, replicas, end), _left_waiting(requests, steps)])
    slept = replicas.head(0) if asleep is None else asleep
    slept_seconds = _seconds(_between(slept, "requested", begin, end)) * slept["gpus"].to_numpy()
    started = replicas.filter(pl.col("ready") > pl.col("requested"))
    changes = np.concatenate([np.diff([count, *_asked_for(events, name)]) for name, count in initial.items()])
    return {
        "replicas": {
            "mean": float((np.diff(times) * counts).sum()) / duration if duration else None,
            "max": int(counts.max()) if duration else None,
            "min": int(counts.min()) if duration else None,
        },
        "asked": float(asked_seconds.sum()) / duration if duration else None,
        "gpu_hours": float((asked_seconds * replicas["gpus"].to_numpy()).sum()) / 3600,
        "asleep_gpu_hours": float(slept_seconds.sum()) / 3600,
        "asleep_cost": None if asleep is None else _cost(slept_seconds, slept["gpu_hour_price"]),
        "ups": int((changes > 0).sum()),
        "downs": int((changes < 0).sum()),
        "starts": len(started),
        "start": _mean(started["ready"] - started["requested"]),
        "under_provisioned": union_length(*np.clip(waited, begin, end).T) / duration if duration else None,
    }


def _asked_for(events: pl.DataFrame, pool: str) -> list[int]:
    """The replicas that each decision for a pool asked for."""
    decided = (pl.col("kind") == "scaled") & pl.col("detail").str.starts_with(f"{pool}: " if pool else "")
    return events.filter(decided)["amount"].to_list()


def _between(replicas: pl.DataFrame, since: str, begin: float, end: float) -> Spans:
    until = pl.col("ended").fill_null(end)
    return np.clip(replicas.select(pl.col(since), until).to_numpy().reshape(-1, 2), begin, end)


def _seconds(spans: Spans) -> np.ndarray:
    return spans[:, 1] - spans[:, 0]


def _counts(spans: Spans, begin: float, end: float) -> tuple[np.ndarray, np.ndarray]:
    """Instants from `begin` to `end`, and how many spans there are between each and the next."""
    times = np.unique([begin, end, *spans.ravel()])
    starts, ends = np.sort(spans[:, 0]), np.sort(spans[:, 1])
    there = np.searchsorted(starts, times[:-1], "right") - np.searchsorted(ends, times[:-1], "right")
    return times, there


def _held(requests: pl.DataFrame, replicas: pl.DataFrame, end: float) -> Spans:
    """For each request that came before its replica was ready: until then. Those that none ever took: to the end."""
    came = requests.filter(pl.col("arrival").is_not_null())
    with_ready = came.join(replicas.select("replica", "ready"), on="replica", how="left").filter(
        (pl.col("ready") > pl.col("arrival")) | ((pl.col("replica") < 0) & (pl.col("status") == "unfinished"))
    )
    return with_ready.select("arrival", pl.col("ready").fill_null(end)).to_numpy().reshape(-1, 2)


def _left_waiting(requests: pl.DataFrame, steps: pl.DataFrame) -> Spans:
    """For each request that a step of its replica left out after it had come: from that step on until it was in one."""
    spans = [np.zeros((0, 2))]
    scheduled = requests.filter(pl.col("first_scheduled").is_not_null() & (pl.col("replica") >= 0))
    starts_of = dict(_by_replica(steps.select("replica", "start")))
    for replica, rows in _by_replica(scheduled.select("replica", "arrival", "first_scheduled")):
        starts = np.sort(starts_of[replica]["start"].to_numpy()) if replica in starts_of else np.zeros(0)
        arrival, admitted = rows["arrival"].to_numpy(), rows["first_scheduled"].to_numpy()
        place = np.searchsorted(starts, arrival, "right")
        next_start = np.append(starts, np.inf)[place]
        left_out = next_start < admitted
        spans.append(np.stack([next_start[left_out], admitted[left_out]], axis=1))
    return np.concatenate(spans)


def _by_replica(table: pl.DataFrame) -> Iterable[tuple[int, pl.DataFrame]]:
    for (replica,), rows in table.group_by("replica", maintain_order=True):
        yield int(replica), rows


def _cost(gpu_seconds: np.ndarray, prices: pl.Series) -> float | None:
    return None if prices.null_count() else float((gpu_seconds / 3600 * prices.to_numpy()).sum())


def _mean(values: pl.Series) -> float | None:
    return float(values.to_numpy().mean()) if len(values) else None
