"""The canonical request table: every reader makes it, every simulator and replayer takes it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import polars as pl

# Name → (type, meaning). Times are seconds, from the first arrival of the trace unless said otherwise.
# A null means "the source does not say"; it is never filled silently.
COLUMNS: dict[str, tuple[pl.DataType, str]] = {
    "request_id": (pl.Int64(), "dense, 0-based, in order of arrival"),
    "arrival": (pl.Float64(), "when it reaches the service; null only where `parent` releases it"),
    "prompt_tokens": (pl.Int64(), "length of the prompt, cached part included; at least 1"),
    "output_tokens": (pl.Int64(), "tokens generated; at least 1"),
    "session": (pl.String(), "conversation it belongs to"),
    "turn": (pl.Int64(), "0-based place in its session"),
    "parent": (pl.Int64(), "request_id that must finish before this one is sent"),
    "think_time": (pl.Float64(), "delay between the parent's finish and this request"),
    "prefix_ids": (
        pl.List(pl.Int64()),
        "chain ids of its blocks: equal id = equal tokens from the start up to that block's end; "
        "the last id may stand for a partial block",
    ),
    "prefix_block_tokens": (pl.Int64(), "tokens a prefix id stands for"),
    "priority": (pl.Int64(), "larger = more urgent"),
    "slo_class": (pl.String(), "service class"),
    "deadline": (pl.Float64(), "seconds after arrival by which the last token is wanted"),
    "model": (pl.String(), "model asked for"),
    "tenant": (pl.String(), "who sent it"),
    "source_queue": (pl.Float64(), "queueing time at the source; for comparison, never an input"),
    "source_ttft": (pl.Float64(), "time to first token at the source; for comparison, never an input"),
    "source_e2e": (pl.Float64(), "end-to-end latency at the source; for comparison, never an input"),
    "source_row": (pl.Int64(), "0-based data row in the source file"),
}
REQUIRED = ("request_id", "arrival", "prompt_tokens", "output_tokens")


@dataclass
class Trace:
    """A request table and where it came from.

    `requests` holds the required columns and those optional ones that the source fills. `rows_read` equals
    `len(requests) + sum(dropped.values())`; each key of `dropped` says why, in words.

    `clock` is "shared", or "session": then the source does not say when its sessions began, and `arrival` counts from
    the beginning of the request's own session. `traces.session_arrivals` puts such a trace on one clock.
    """

    requests: pl.DataFrame
    format: str
    source: str
    rows_read: int
    dropped: dict[str, int] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    clock: Literal["shared", "session"] = "shared"
