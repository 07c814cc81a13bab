"""Azure's public LLM traces: 2023 (naive times), 2024 (+00:00, fraction sometimes absent), multimodal 2025 (Z)."""

from __future__ import annotations

import polars as pl

from traces.readers import fields
from traces.readers.assemble import assemble
from traces.readers.raw import RawTable
from traces.readers.reader import Reader
from traces.table import Trace


def _read(raw: RawTable) -> Trace:
    columns = {
        "arrival": _wall_clock(raw, "TIMESTAMP"),
        "prompt_tokens": fields.tokens(raw, "ContextTokens"),
        "output_tokens": fields.tokens(raw, "GeneratedTokens"),
    }
    notes = {}
    if "NumImages" in raw.fields:
        images = int(fields.integers(raw, "NumImages").fill_null(0).sum())
        notes["images"] = {"count": images, "meaning": "image tokens are part of ContextTokens; no column of their own"}
    return assemble(raw, columns, READER.name, notes=notes)


def _wall_clock(raw: RawTable, column: str) -> pl.Series:
    """Seconds from the earliest row; a time without zone is read as UTC. Whole microseconds until the last step."""
    plain = raw.frame[column].str.strip_chars().str.replace(r"(Z|\+00:00)$", "").str.replace("T", " ", literal=True)
    times = plain.str.to_datetime("%Y-%m-%d %H:%M:%S%.f", time_unit="us", strict=False)
    unread = times.is_null().arg_true()
    if len(unread):
        fields.refuse_row(raw, column, int(unread[0]), "a UTC time such as 2024-05-10 00:00:00.009930+00:00")
    microseconds = times.to_physical()
    return (microseconds - microseconds.min()) / 1e6


READER = Reader(
    name="azure",
    summary="Azure CSV of 2023, 2024, 2025: TIMESTAMP [UTC], ContextTokens, GeneratedTokens",
    kinds=("csv",),
    recognises=lambda found: found >= {"TIMESTAMP", "ContextTokens", "GeneratedTokens"},
    read=_read,
)
