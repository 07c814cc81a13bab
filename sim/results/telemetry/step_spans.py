"""A replica as a trace: how long it was there, and the steps that sampled requests ran in, linked to those."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
from opentelemetry.sdk.trace import Span
from opentelemetry.trace import Link

from sim.results.folder import Run
from sim.results.telemetry.request_spans import engine_service
from sim.results.telemetry.span_ids import trace_id
from sim.results.telemetry.tracers import Tracers

_MOST_LINKS = 100  # of one step
_COLUMNS = ("steps", "prefill_seqs", "prefill_tokens", "decode_seqs", "kv_tokens", "running", "waiting", "kv_blocks",
            "preempted")  # fmt: skip


def add_step_spans(
    run: Run, replicas: list[dict[str, Any]], engines: dict[int, Span], tracers: Tracers, seed: int, most: int
) -> tuple[int, int]:
    """At most so many spans of rows of steps: how many there are now, and how many rows there were to choose from.

    Args:
        replicas: each with `replica`, `requested`, `ready` and `ended`, seconds of the run.
        engines: the engine's span of each sampled request that finished, by request_id.
    """
    own = run.requests.filter(pl.col("request_id").is_in(list(engines)) & pl.col("first_scheduled").is_not_null())
    chosen = {row["replica"]: _rows(run.steps, own, row["replica"]) for row in replicas}
    there = sum(map(len, chosen.values()))
    every = max(1, -(-there // most)) if most else 1
    seen = written = 0
    for row in replicas:
        number = row["replica"]
        rows = chosen[number].filter((pl.int_range(pl.len()) + seen) % every == 0) if most else run.steps.clear()
        seen += len(chosen[number])
        tracers.begin_trace(trace_id(seed, f"replica {number}"))
        end = max([row["ended"], *rows["end"].tail(1)])
        root = tracers.span(engine_service(number), f"replica {number}", row["requested"], end)
        if row["ready"] > row["requested"]:
            tracers.span(engine_service(number), "starting", row["requested"], row["ready"], parent=root)
        requests = own.filter(pl.col("replica") == number)
        begin, finish = requests["first_scheduled"].to_numpy(), requests["finish"].to_numpy()
        for step in rows.iter_rows(named=True):
            inside = np.flatnonzero((begin < step["end"]) & (finish > step["start"]))[:_MOST_LINKS]
            links = [Link(engines[requests["request_id"][int(place)]].get_span_context()) for place in inside]
            about = {f"simctl.step.{name}": step[name] for name in _COLUMNS}
            tracers.span(
                engine_service(number), "step", step["start"], step["end"], parent=root, attributes=about, links=links
            )
        written += len(rows)
    return written, there


def _rows(steps: pl.DataFrame, requests: pl.DataFrame, replica: int) -> pl.DataFrame:
    """Those of a replica in which any of the requests ran, in the order of their start."""
    rows = steps.filter(pl.col("replica") == replica).sort("start", "end")
    own = requests.filter(pl.col("replica") == replica)
    changes = np.zeros(len(rows) + 1, dtype=np.int64)
    np.add.at(changes, np.searchsorted(rows["end"].to_numpy(), own["first_scheduled"].to_numpy(), side="right"), 1)
    np.subtract.at(changes, np.searchsorted(rows["start"].to_numpy(), own["finish"].to_numpy(), side="left"), 1)
    return rows.filter(changes.cumsum()[:-1] > 0)
