"""Vidur's processed CSV: arrived_at in seconds; files of lengths alone say nothing about arrivals and are refused."""

from __future__ import annotations

import polars as pl

from ground.errors import UserError
from traces.readers import fields
from traces.readers.assemble import assemble
from traces.readers.raw import RawTable
from traces.readers.reader import Reader
from traces.table import Trace

NAME = "vidur"
_LENGTHS = frozenset({"num_prefill_tokens", "num_decode_tokens"})


def _read(raw: RawTable) -> Trace:
    if is_lengths_only(raw):
        raise UserError(
            f"{raw.path}: found lengths but no column 'arrived_at'; give arrivals with a synth spec that has "
            "`lengths: {resample: {file: " + str(raw.path) + "}}`"
        )
    columns = {"arrival": fields.seconds(raw, "arrived_at"), **lengths(raw)}
    return assemble(raw, columns, NAME)


def is_lengths_only(raw: RawTable) -> bool:
    """Whether this is a Vidur file without arrivals."""
    return READER.claims(raw) and "arrived_at" not in raw.fields


def lengths(raw: RawTable) -> dict[str, pl.Series]:
    """The two token columns, which a file of lengths has as well."""
    return {
        "prompt_tokens": fields.tokens(raw, "num_prefill_tokens"),
        "output_tokens": fields.tokens(raw, "num_decode_tokens"),
    }


READER = Reader(
    name=NAME,
    summary="Vidur CSV: arrived_at [s], num_prefill_tokens, num_decode_tokens",
    kinds=("csv",),
    recognises=lambda found: found >= _LENGTHS,
    read=_read,
)
