"""Sessions that were recorded without a common clock are started by an arrival process that the user names."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from ground.errors import UserError
from traces.families import own_or_inherited_arrival, renumber
from traces.streams import stream
from traces.table import Trace

if TYPE_CHECKING:
    from traces.synth.arrivals import Arrivals


def need_one_clock(trace: Trace) -> None:
    """Raise a UserError where the sessions of `trace` have no common clock: nobody may start them all at 0 unasked."""
    if trace.clock == "session":
        raise UserError(
            f"{trace.source}: its sessions have no common clock; say how they begin with "
            "--session-arrivals poisson:0.05, or in a scenario with "
            "`session_arrivals: {process: poisson, rate: 0.05}` (sessions per second)"
        )


def place_sessions(trace: Trace, process: Arrivals, seed: int) -> Trace:
    """Start the sessions of `trace` at the arrivals that `process` draws, in the order of the source, the first at 0.

    Within a session nothing moves: what has an arrival keeps its distance from the session's first one.

    Raises:
        UserError: the trace has a clock of its own.
    """
    if trace.clock != "session":
        raise UserError(f"{trace.source}: session arrivals: its requests have arrivals of their own, expected none")
    table = trace.requests
    session = table["session"].rank("dense").to_numpy() - 1
    _, first_row = np.unique(session, return_index=True)
    in_order = np.argsort(np.argsort(first_row))  # session number → its place in the source
    starts = process.draw(stream(seed, "session arrivals"), len(first_row), None)
    starts = (starts - starts[0])[in_order]

    begin = table.select(pl.col("arrival").min().over("session"))["arrival"].to_numpy()
    arrival = table["arrival"].to_numpy().astype(float) - begin + starts[session]
    placed = table.with_columns(arrival=pl.Series(arrival).fill_nan(None))
    order = np.argsort(own_or_inherited_arrival(placed), kind="stable")
    placed = placed[order]
    notes = {**trace.notes, "session_arrivals": {**process.model_dump(mode="json", exclude_none=True), "seed": seed}}
    requests = renumber(placed, placed["request_id"])
    return Trace(requests, trace.format, trace.source, trace.rows_read, dict(trace.dropped), notes)
