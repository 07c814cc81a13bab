"""The canonical table read back: Parquet with the trace's own metadata, or CSV and JSON lines without it."""

from __future__ import annotations

import json

import polars as pl

from ground.errors import UserError
from traces.checks import check
from traces.readers import fields
from traces.readers.raw import RawTable
from traces.readers.reader import Reader
from traces.table import COLUMNS, REQUIRED, Trace

METADATA_KEY = "simctl.trace"


def _read(raw: RawTable) -> Trace:
    names = [name for name in COLUMNS if name in raw.fields]
    requests = pl.DataFrame({name: _column(raw, name) for name in names})
    origin = {"format": READER.name, "source": str(raw.path), "rows_read": len(requests), "dropped": {}, "notes": {}}
    if METADATA_KEY in raw.metadata:
        origin = json.loads(raw.metadata[METADATA_KEY])
    trace = Trace(requests, **origin)  # type: ignore[arg-type]
    check(trace)
    return trace


def _column(raw: RawTable, name: str) -> pl.Series:
    dtype = COLUMNS[name][0]
    cells = raw.frame[name]
    if cells.dtype == dtype:
        return cells
    if name == "prefix_ids":
        return _ids(raw, cells)
    if dtype == pl.Int64():
        return fields.integers(raw, name)
    if dtype == pl.Float64():
        return fields.seconds(raw, name, nullable=True)
    return cells.cast(pl.String)


def _ids(raw: RawTable, cells: pl.Series) -> pl.Series:
    """Ids are a list, or in a CSV file numbers with blanks between."""
    try:
        if cells.dtype == pl.String:
            return cells.str.split(" ").cast(pl.List(pl.Int64))
        return cells.cast(pl.List(pl.Int64))
    except pl.exceptions.PolarsError as error:
        raise UserError(f"{raw.path}: column 'prefix_ids': expected lists of whole numbers") from error


READER = Reader(
    name="canonical",
    summary="simctl's own table, as `simctl trace convert` and `synth` write it",
    kinds=("parquet", "csv", "jsonl"),
    recognises=lambda found: found >= set(REQUIRED) and found <= set(COLUMNS),
    read=_read,
)
