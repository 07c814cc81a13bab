"""What a replay measured: the simulator's own tables, how late the client was, and why requests failed."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from sim.results.recorder import with_latencies
from sim.results.tables import EVENTS, REQUESTS

_DERIVED = ("ttft", "tpot", "e2e", "queue")


@dataclass(frozen=True)
class Lateness:
    """Seconds between the moment a request was due and the moment it was sent or handed to the engine."""

    requests: int
    mean: float
    p99: float
    max: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Lateness:
        if not seconds:
            return cls(0, 0.0, 0.0, 0.0)
        ordered = sorted(seconds)
        p99 = ordered[math.ceil(0.99 * len(ordered)) - 1]
        return cls(len(ordered), sum(ordered) / len(ordered), p99, ordered[-1])


@dataclass
class Recording:
    """One replay. `requests` has the columns of `REQUESTS`, `steps` those of `STEPS` (no rows where unseen)."""

    requests: pl.DataFrame
    steps: pl.DataFrame
    lateness: Lateness
    failures: Counter[str] = field(default_factory=Counter)  # reason in words → requests
    events: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=EVENTS))  # its columns; likewise
    sessions: pl.DataFrame | None = None  # with the columns of `SESSIONS`, where KV blocks were kept for idle sessions
    engine: dict[str, Any] = field(default_factory=dict)  # what answered: device and versions, or the server's address


def request_table(rows: Iterable[dict[str, Any]]) -> pl.DataFrame:
    """The canonical request table of rows that hold its times and counts; the latencies are derived here."""
    given = {name: kind for name, kind in REQUESTS.items() if name not in _DERIVED}
    table = pl.DataFrame(list(rows), schema=given, orient="row")
    return with_latencies(table).select(list(REQUESTS))
