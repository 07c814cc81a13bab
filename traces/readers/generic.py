"""Any CSV, JSON lines or Parquet file whose columns the user maps to canonical ones."""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

from ground.errors import UserError
from traces.readers import fields
from traces.readers.assemble import assemble
from traces.readers.raw import RawTable
from traces.table import COLUMNS, Trace

NAME = "generic"
SUMMARY = "any CSV, JSON lines or Parquet with a column map, such as arrival_ms=ts prompt_tokens=in output_tokens=out"

_TIMES = ("arrival", "think_time", "deadline", "source_queue", "source_ttft", "source_e2e")
_PER_SECOND = {"": 1.0, "_ms": 1e3, "_us": 1e6, "_ns": 1e9}
_TARGETS = {f"{name}{unit}": (name, scale) for name in _TIMES for unit, scale in _PER_SECOND.items()}
_MADE_BY_US = ("request_id", "source_row", "parent")
_NEEDED = ("arrival", "prompt_tokens", "output_tokens")


def read(raw: RawTable, columns: Mapping[str, str | int], *, allow_unsorted: bool = False) -> Trace:
    """Read `raw` by the map canonical name → column of the file.

    A time may carry its unit in the target's name (`arrival_ms`). A whole number as the source is a constant for all
    rows (`prefix_block_tokens: 16`). Arrivals may be numbers or datetimes (Parquet).

    Raises:
        UserError: a target that is not canonical or is given twice, a source column that does not exist, a needed
            target that is missing, a cell that does not fit, or unsorted rows without `allow_unsorted`.
    """
    typed: dict[str, pl.Series] = {}
    for target, source in columns.items():
        name, per_second = _TARGETS.get(target, (target, 1.0))
        if name not in COLUMNS or name in _MADE_BY_US:
            known = ", ".join(c for c in COLUMNS if c not in _MADE_BY_US)
            raise UserError(f"{raw.path}: column map: unknown target {target!r}, expected one of {known}")
        if name in typed:
            raise UserError(f"{raw.path}: column map: {name!r} is given twice")
        typed[name] = _column(raw, name, source, per_second)
    missing = [name for name in _NEEDED if name not in typed]
    if missing:
        raise UserError(f"{raw.path}: column map: {missing[0]!r} is missing, expected {', '.join(_NEEDED)}")
    return assemble(raw, typed, NAME, must_be_sorted=not allow_unsorted)


def _column(raw: RawTable, name: str, source: str | int, per_second: float) -> pl.Series:
    dtype = COLUMNS[name][0]
    if isinstance(source, int) and dtype == pl.Int64():
        return pl.Series([source], dtype=pl.Int64).new_from_index(0, len(raw.frame))
    if source not in raw.fields:
        raise UserError(f"{raw.path}: no column {source!r}; the file has {', '.join(raw.frame.columns)}")
    cells = raw.frame[str(source)]
    if name == "arrival" and isinstance(cells.dtype, pl.Datetime):
        unread = cells.is_null().arg_true()
        if len(unread):
            fields.refuse_row(raw, str(source), int(unread[0]), "a time")
        ticks = cells.dt.cast_time_unit("ns").to_physical()
        return (ticks - ticks.min()) / 1e9
    if name in _TIMES:
        return fields.seconds(raw, str(source), per_second, nullable=name != "arrival")
    if name in ("prompt_tokens", "output_tokens"):
        return fields.tokens(raw, str(source))
    if name == "prefix_ids":
        if not isinstance(cells.dtype, pl.List) or not cells.dtype.inner.is_integer():
            raise UserError(f"{raw.path}: column {source!r}: found {cells.dtype}, expected lists of whole numbers")
        return cells.cast(pl.List(pl.Int64))
    return fields.integers(raw, str(source)) if dtype == pl.Int64() else cells.cast(pl.String)
