"""Read a trace file of any known format into the canonical table."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ground.errors import UserError
from traces.readers import READERS, generic
from traces.readers.raw import RawTable, open_raw
from traces.session_arrivals import need_one_clock, place_sessions
from traces.table import Trace

if TYPE_CHECKING:
    from traces.synth.arrivals import Arrivals


def formats() -> dict[str, str]:
    """Name → one line about it, for every format `read` knows."""
    return {reader.name: reader.summary for reader in READERS} | {generic.NAME: generic.SUMMARY}


def read(
    path: str | Path,
    format: str | None = None,
    columns: Mapping[str, str | int] | None = None,
    *,
    allow_unsorted: bool = False,
    session_arrivals: Arrivals | None = None,
    seed: int = 0,
) -> Trace:
    """Read `path` onto one clock; see `read_as_recorded` for the other arguments.

    `session_arrivals` starts the sessions of a source that has no common clock, drawn with `seed`.

    Raises:
        UserError: names file, row and column of what cannot be read; `session_arrivals` is missing or has no meaning.
    """
    trace = read_as_recorded(path, format, columns, allow_unsorted=allow_unsorted)
    if session_arrivals is not None:
        return place_sessions(trace, session_arrivals, seed)
    need_one_clock(trace)
    return trace


def read_as_recorded(
    path: str | Path,
    format: str | None = None,
    columns: Mapping[str, str | int] | None = None,
    *,
    allow_unsorted: bool = False,
) -> Trace:
    """Read `path` (.csv, .tsv, .jsonl, .ndjson, .json, .parquet; the text ones also .gz or .zst; or a folder of them).

    Without `format` the header or keys decide, and exactly one reader must claim the file. `columns` maps canonical
    names to the file's columns and means the generic format, the only one that refuses unsorted rows unless
    `allow_unsorted`; the named formats sort and note it. Sessions without a common clock stay so (`Trace.clock`).

    Raises:
        UserError: names file, row and column of what cannot be read.
    """
    path = Path(path)
    if format is not None and format not in formats():
        raise UserError(f"{path}: unknown format {format!r}, expected one of {', '.join(formats())}")
    if columns is not None and format not in (None, generic.NAME):
        raise UserError(f"{path}: a column map belongs to format {generic.NAME!r}, not to {format!r}")
    if format == generic.NAME and columns is None:
        raise UserError(f"{path}: format {generic.NAME!r} needs a column map, such as arrival_ms=ts")
    raw = open_raw(path)
    if columns is not None:
        return generic.read(raw, columns, allow_unsorted=allow_unsorted)
    if format is not None:
        reader = next(reader for reader in READERS if reader.name == format)
        if not reader.claims(raw):
            raise UserError(f"{path}: not {format}: found {_seen(raw)}, expected {reader.summary}")
        return reader.read(raw)
    claims = [reader for reader in READERS if reader.claims(raw)]
    if len(claims) != 1:
        matched = f"matched by {', '.join(reader.name for reader in claims)}" if claims else "no format matches"
        known = "; ".join(f"{name}: {summary}" for name, summary in formats().items())
        raise UserError(f"{path}: {matched}; found {_seen(raw)}; known formats are {known}")
    return claims[0].read(raw)


def _seen(raw: RawTable) -> str:
    return f"a {raw.kind} file with {', '.join(raw.frame.columns)}"
