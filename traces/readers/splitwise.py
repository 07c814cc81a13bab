"""SplitwiseSim's CSV: arrival_timestamp in seconds, prompt_size and token_size in tokens."""

from __future__ import annotations

from traces.readers import fields
from traces.readers.assemble import assemble
from traces.readers.raw import RawTable
from traces.readers.reader import Reader
from traces.table import Trace


def _read(raw: RawTable) -> Trace:
    if "batch_size" in raw.fields:
        several = (fields.integers(raw, "batch_size") != 1).fill_null(False).arg_true()
        if len(several):
            fields.refuse_row(raw, "batch_size", int(several[0]), "1: a row is one request")
    columns = {
        "arrival": fields.seconds(raw, "arrival_timestamp"),
        "prompt_tokens": fields.tokens(raw, "prompt_size"),
        "output_tokens": fields.tokens(raw, "token_size"),
    }
    return assemble(raw, columns, READER.name)


READER = Reader(
    name="splitwise",
    summary="SplitwiseSim CSV: arrival_timestamp [s], prompt_size, token_size",
    kinds=("csv",),
    recognises=lambda found: found >= {"arrival_timestamp", "prompt_size", "token_size"},
    read=_read,
)
