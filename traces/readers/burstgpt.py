"""BurstGPT's CSV, 6 columns or 8: Session ID and Elapsed time come in the middle, so it is read by name."""

from __future__ import annotations

import polars as pl

from traces.readers import fields
from traces.readers.assemble import assemble
from traces.readers.raw import RawTable
from traces.readers.reader import Reader
from traces.table import Trace

_COLUMNS = frozenset({"Timestamp", "Model", "Request tokens", "Response tokens"})


def _read(raw: RawTable) -> Trace:
    columns = {
        "arrival": fields.seconds(raw, "Timestamp"),
        "prompt_tokens": fields.tokens(raw, "Request tokens"),
        "output_tokens": fields.tokens(raw, "Response tokens"),  # 0 = failed; `assemble` drops and counts it
        "model": raw.frame["Model"],
    }
    if "Session ID" in raw.fields:
        columns["session"] = raw.frame["Session ID"].cast(pl.String)
    if "Elapsed time" in raw.fields:
        columns["source_e2e"] = fields.seconds(raw, "Elapsed time", nullable=True)
    return assemble(raw, columns, READER.name)


READER = Reader(
    name="burstgpt",
    summary="BurstGPT CSV: Timestamp [s], [Session ID, Elapsed time [s],] Model, Request tokens, Response tokens, …",
    kinds=("csv",),
    recognises=lambda found: found >= _COLUMNS,
    read=_read,
)
