"""From the rows of any source to a Trace: drop what cannot run, sort, shift, number, check."""

from __future__ import annotations

from collections import Counter
from typing import Any, Literal

import numpy as np
import polars as pl

from ground.errors import UserError
from traces.checks import check
from traces.readers.raw import RawTable
from traces.table import COLUMNS, Trace

NO_PROMPT = "no prompt tokens"
NO_OUTPUT = "no output tokens (failed at the source)"
NO_PARENT = "its parent was dropped"


def assemble(
    raw: RawTable,
    columns: dict[str, pl.Series],
    format: str,
    *,
    notes: dict[str, Any] | None = None,
    must_be_sorted: bool = False,
    clock: Literal["shared", "session"] = "shared",
) -> Trace:
    """Make the canonical trace from typed columns in source order.

    `columns` maps canonical names to series of one length; `arrival` is in seconds from any origin; `parent`, where
    given, is the 0-based position of an earlier row. Rows with 0 tokens are dropped and counted, and so is what they
    would have released; a row with an arrival of its own only loses its parent. Arrivals are sorted stably and shifted
    so that the first is 0; a request that its parent releases takes its place by the arrival of its first ancestor. A
    source that is not sorted is noted. With `clock` "session" arrivals and order stay as they are.

    Raises:
        UserError: no row is left, or the source is not sorted and `must_be_sorted`.
    """
    frame = pl.DataFrame(columns)
    if "source_row" not in frame.columns:
        frame = frame.with_columns(source_row=pl.int_range(len(frame), dtype=pl.Int64))
    rows_read = len(frame)
    notes = dict(notes or {})
    frame = frame.with_columns(_position=pl.int_range(rows_read, dtype=pl.Int64), _start=_start_times(frame))

    frame, dropped = _drop(frame)
    if frame.is_empty():
        raise UserError(f"{raw.path}: no request is left of {rows_read} rows read ({_reasons(dropped)})")

    if clock == "session":
        return _finish(raw, frame, format, rows_read, dropped, notes, clock)
    starts = frame["_start"]
    backward = (starts.diff() < 0).fill_null(False)
    if backward.any():
        row = int(frame["source_row"][int(backward.arg_true()[0])])
        if must_be_sorted:
            raise UserError(
                f"{raw.path}: data row {row} (from 0): the arrival lies before the one above it, expected a sorted "
                "file (allow unsorted rows explicitly if the order is meant)"
            )
        times = starts.to_numpy()
        step = float(-np.diff(times).min())
        notes["unsorted"] = {"steps_back": int(backward.sum()), "first_at_row": row, "largest_step_seconds": step}
        # One step back over most of the span is two clocks in one file, not a few late rows; but a file of closed loop
        # sessions has one session below the other.
        if "parent" not in frame.columns and step > 0.5 * float(np.ptp(times)):
            notes["unsorted"]["clock_reset"] = True

    frame = frame.sort("_start", maintain_order=True).with_columns(pl.col("arrival") - starts.min())
    return _finish(raw, frame, format, rows_read, dropped, notes, clock)


def _finish(
    raw: RawTable,
    frame: pl.DataFrame,
    format: str,
    rows_read: int,
    dropped: Counter[str],
    notes: dict[str, Any],
    clock: Literal["shared", "session"],
) -> Trace:
    """Number the rows as they lie now, and check what has come out."""
    frame = frame.with_row_index("request_id")
    if "parent" in frame.columns:
        new_id = dict(zip(frame["_position"].to_list(), frame["request_id"].to_list(), strict=True))
        frame = frame.with_columns(pl.col("parent").replace_strict(new_id, default=None, return_dtype=pl.Int64))

    requests = frame.select(pl.col(name).cast(dtype) for name, (dtype, _) in COLUMNS.items() if name in frame.columns)
    trace = Trace(requests, format, str(raw.path), rows_read, dict(dropped), notes, clock)
    check(trace)
    return trace


def _start_times(frame: pl.DataFrame) -> pl.Series:
    """The arrival of each row, or of its first ancestor where a parent releases it."""
    starts = frame["arrival"].to_list()
    if "parent" in frame.columns:
        for row, parent in enumerate(frame["parent"].to_list()):
            if starts[row] is None:
                starts[row] = starts[parent]
    return pl.Series("_start", starts, dtype=pl.Float64)


def _drop(frame: pl.DataFrame) -> tuple[pl.DataFrame, Counter[str]]:
    reason = frame.select(
        pl.when(pl.col("prompt_tokens") == 0)
        .then(pl.lit(NO_PROMPT))
        .when(pl.col("output_tokens") == 0)
        .then(pl.lit(NO_OUTPUT))
        .alias("reason")
    )["reason"]
    if reason.null_count() < len(reason) and "parent" in frame.columns:
        reasons = reason.to_list()
        released = frame["arrival"].is_null().to_list()
        for row, parent in enumerate(frame["parent"].to_list()):
            if released[row] and parent is not None and reasons[row] is None and reasons[parent] is not None:
                reasons[row] = NO_PARENT
        reason = pl.Series("reason", reasons, dtype=pl.String)
    dropped = Counter(dict(sorted(Counter(reason.drop_nulls().to_list()).items())))
    return frame.filter(reason.is_null()), dropped


def _reasons(dropped: Counter[str]) -> str:
    return ", ".join(f"{count}: {why}" for why, count in dropped.items()) or "none dropped"
