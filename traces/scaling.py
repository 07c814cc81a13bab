"""Change how much load a trace is, each way by its name, each noted in `Trace.notes["scaling"]`.

A family is a session, or a request with all that its finish releases, directly or not. Families stay whole wherever
requests are chosen or moved, since half a conversation is another workload.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ground.errors import UserError
from traces.families import own_or_inherited_arrival, renumber
from traces.session_arrivals import need_one_clock
from traces.streams import stream
from traces.table import Trace


def first(
    trace: Trace, *, seconds: float | None = None, requests: int | None = None, share: float | None = None
) -> Trace:
    """The beginning of a trace: what arrives before `seconds`, the first `requests`, or a `share` of them, rounded up;
    give exactly one.

    A request without an arrival of its own goes with the ancestor that has one.
    """
    if [seconds, requests, share].count(None) != 2:
        raise UserError("first: give exactly one of seconds, requests and share")
    table = trace.requests
    if seconds is not None:
        if not seconds > 0:
            raise UserError(f"first: seconds: found {seconds}, expected more than 0")
        kept = own_or_inherited_arrival(table) < seconds
        return _choose(trace, kept, f"not in the first {seconds:g} s", {"first_seconds": seconds})
    if share is not None:
        if not 0 < share <= 1:
            raise UserError(f"first: share: found {share}, expected more than 0 and at most 1")
        requests = math.ceil(share * len(table) - 1e-9)  # a third of 3 is 1, whatever the last bit says
    assert requests is not None
    if requests < 1:
        raise UserError(f"first: requests: found {requests}, expected at least 1")
    kept = np.arange(len(table)) < requests
    return _choose(trace, kept, f"not in the first {requests} requests", {"first_requests": requests})


def time_stretch(trace: Trace, factor: float) -> Trace:
    """Multiply arrivals by `factor`: 2 takes twice as long at half the rate.

    The coefficient of variation of the gaps stays, their sizes in seconds do not. Think times, deadlines and source
    latencies stay: they belong to users and servers, not to the clock of the arrivals.
    """
    if not (factor > 0 and np.isfinite(factor)):
        raise UserError(f"stretch: found {factor}, expected a finite factor above 0")
    stretched = trace.requests.with_columns(pl.col("arrival") * factor)
    return _noted(trace, stretched, {"time_stretch": factor})


def thin(trace: Trace, keep: float, seed: int) -> Trace:
    """Keep each family with probability `keep`, independently; the gaps tend to exponential ones as `keep` falls.

    The clock stays, so the trace spans the same time at `keep` times the rate.
    """
    if not 0 < keep <= 1:
        raise UserError(f"thin: found {keep}, expected a probability above 0 and at most 1")
    family = _family(trace.requests)
    rng = stream(seed, "thin")
    chosen = rng.random(int(family.max()) + 1) < keep
    return _choose(trace, chosen[family], f"thinned to {keep:g}", {"thin": keep, "seed": seed})


def superpose(trace: Trace, copies: int, seed: int, *, share_prefixes: bool = False) -> Trace:
    """`copies` of the trace on top of each other: `copies` times the rate over the same time.

    Copy 0 stays; every other one is turned around the clock by a uniform random offset, so that each family's first
    arrival stays within the span of the trace. Sessions are renamed `name#copy`. Prefix ids are distinct between
    copies (other users, other texts), or the same ones with `share_prefixes`.
    """
    if copies < 1:
        raise UserError(f"copies: found {copies}, expected at least 1")
    need_one_clock(trace)
    table = trace.requests
    rng = stream(seed, "superpose")
    arrival = table["arrival"].to_numpy().astype(float)
    family = _family(table)
    begin = arrival[family]
    place = own_or_inherited_arrival(table)
    # One mean gap beyond the last arrival closes the circle without a doubled gap at the seam.
    span = float(np.nanmax(begin)) * (1 + 1 / max(len(table) - 1, 1))
    offsets = [0.0, *rng.uniform(0, span, copies - 1).tolist()]
    ids = table["prefix_ids"].explode().max() if "prefix_ids" in table.columns and not share_prefixes else None
    id_stride = 0 if ids is None else int(ids) + 1  # type: ignore[arg-type]

    parts = []
    for copy, offset in enumerate(offsets):
        turned = (begin + offset) % span if span and offset else begin
        part = table.with_columns(
            arrival=pl.Series(arrival + (turned - begin)).fill_nan(None), _place=pl.Series(place + (turned - begin))
        )
        if "session" in table.columns and copy:
            part = part.with_columns(pl.col("session") + f"#{copy}")
        if "prefix_ids" in table.columns and copy and id_stride:
            part = part.with_columns(pl.col("prefix_ids").list.eval(pl.element() + copy * id_stride))
        if "parent" in table.columns:
            part = part.with_columns(pl.col("parent") + copy * len(table))
        parts.append(part)
    merged = pl.concat(parts).with_columns(_position=pl.int_range(pl.len()))
    merged = merged.sort("_place", maintain_order=True)
    requests = renumber(merged, merged["_position"]).drop("_place", "_position")
    return Trace(
        requests,
        trace.format,
        trace.source,
        trace.rows_read * copies,
        {why: count * copies for why, count in trace.dropped.items()},
        _with_step(trace.notes, {"superpose": copies, "seed": seed, "share_prefixes": share_prefixes}),
    )


def _family(table: pl.DataFrame) -> NDArray[np.int64]:
    """For each row the row that its family begins with."""
    root = np.arange(len(table))
    if "parent" in table.columns:
        parent = table["parent"].fill_null(-1).to_numpy()
        root = np.where(parent >= 0, parent, root)
        while not np.array_equal(root, root[root]):
            root = root[root]
    if "session" in table.columns:
        session = pl.DataFrame({"session": table["session"][root], "root": root})
        root = session.select(
            pl.when(pl.col("session").is_null()).then("root").otherwise(pl.col("root").min().over("session"))
        )["root"].to_numpy()
    return root


def _choose(trace: Trace, kept: NDArray[np.bool_], why: str, step: Mapping[str, Any]) -> Trace:
    need_one_clock(trace)
    table = trace.requests
    if "parent" in table.columns:  # who loses the parent is lost as well
        keep = kept.tolist()
        for row, parent in enumerate(table["parent"].to_list()):
            if parent is not None and not keep[parent]:
                keep[row] = False
        kept = np.array(keep)
    if not kept.any():
        raise UserError(f"{trace.source}: no request is left ({why})")
    chosen = table.filter(kept)
    requests = renumber(chosen, chosen["request_id"])
    dropped = Counter(trace.dropped)
    if len(requests) < len(table):
        dropped[why] += len(table) - len(requests)
    return Trace(requests, trace.format, trace.source, trace.rows_read, dict(dropped), _with_step(trace.notes, step))


def _noted(trace: Trace, requests: pl.DataFrame, step: Mapping[str, Any]) -> Trace:
    need_one_clock(trace)
    notes = _with_step(trace.notes, step)
    return Trace(requests, trace.format, trace.source, trace.rows_read, dict(trace.dropped), notes)


def _with_step(notes: Mapping[str, Any], step: Mapping[str, Any]) -> dict[str, Any]:
    return {**notes, "scaling": [*notes.get("scaling", []), dict(step)]}
