"""RAGPulse: prompts made of content segments, whose lengths stand in five tables beside the trace.

A prompt is laid out in the order system prompt, passages, history, web search, user input; a template of 6 to 12
tokens that belongs to no segment comes last. Two weeks lie one after the other in the file, on a clock that starts
again.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from ground.errors import UserError
from traces.readers import fields
from traces.readers.assemble import assemble
from traces.readers.raw import RawTable, open_raw
from traces.readers.reader import Reader
from traces.readers.segments import BlockIds, Chain
from traces.table import Trace

BLOCK_TOKENS = 16
WEEK = 604_800.0  # seconds; the session ids, which hold a date, put the second week's zero there

# Key of `hash_ids` → table with its lengths, in the order of the prompt.
_TABLES = {
    "sys_prompt": "1_sys_prompt",
    "passages_ids": "2_passages",
    "history": "3_history",
    "web_search": "5_web_search",
    "user_input": "4_user_input",
}


def _read(raw: RawTable) -> Trace:
    arrival, resets = _unrolled(fields.seconds(raw, "timestamp"))
    session = raw.frame["session_id"].cast(pl.String)
    columns = {
        "arrival": arrival,
        "prompt_tokens": fields.tokens(raw, "input_length"),
        "output_tokens": fields.tokens(raw, "output_length"),
        "session": session,
        "turn": fields.place_among_equals(session),
    }
    columns["prefix_ids"], template = _chains(raw, columns["prompt_tokens"])
    columns["prefix_block_tokens"] = fields.constant(BLOCK_TOKENS, len(raw.frame))
    notes = {
        "prefix": f"{' '.join(_TABLES)}, then the template; {template} prompt tokens of it belong to no segment",
        "turns": "open loop: a turn arrives when the source says",
    }
    if resets:
        notes["clock"] = f"starts again {resets} time(s); {WEEK:g} s are added each time"
    return assemble(raw, columns, READER.name, notes=notes)


def _unrolled(seconds: pl.Series) -> tuple[pl.Series, int]:
    """Times on one clock, and how often the source's clock fell back by more than half a week."""
    resets = np.cumsum(np.diff(seconds.to_numpy(), prepend=seconds[0] if len(seconds) else 0.0) < -WEEK / 2)
    return seconds + pl.Series(resets * WEEK), int(resets[-1]) if len(resets) else 0


def _chains(raw: RawTable, prompt_tokens: pl.Series) -> tuple[pl.Series, int]:
    """(chain ids of each row, prompt tokens of all rows that no segment covers)."""
    lengths = {key: _lengths(raw.path.parent, name) for key, name in _TABLES.items()}
    block_ids = BlockIds(BLOCK_TOKENS)
    rows: list[list[int]] = []
    uncovered = 0
    parts = [raw.frame["hash_ids"].struct.field(key).to_list() for key in _TABLES]
    for row, (prompt, *segments) in enumerate(zip(prompt_tokens, *parts, strict=True)):
        chain, covered = Chain(block_ids), 0
        for key, ids in zip(_TABLES, segments, strict=True):
            for segment in ids or ():
                if segment not in lengths[key]:
                    raise UserError(
                        f"{raw.path}: data row {row} (from 0), key 'hash_ids.{key}': found {segment}, expected an id "
                        f"of {_TABLES[key]}.jsonl"
                    )
                chain.extend(segment, lengths[key][segment])
                covered += lengths[key][segment]
        if covered > prompt:
            raise UserError(
                f"{raw.path}: data row {row} (from 0), key 'input_length': found {prompt}, expected at least the "
                f"{covered} tokens of its segments"
            )
        rows.append(chain.ids)
        uncovered += prompt - covered
    return pl.Series("prefix_ids", rows, dtype=pl.List(pl.Int64)), uncovered


def _lengths(folder: Path, name: str) -> dict[int, int]:
    """Segment id → tokens, from the table of that name, plain or compressed."""
    found = [path for suffix in ("", ".gz", ".zst") if (path := folder / f"{name}.jsonl{suffix}").exists()]
    if not found:
        raise UserError(f"{folder / name}.jsonl: is missing, expected the lengths of segments beside 0_trace.jsonl")
    table = open_raw(found[0])
    ids = [column for column in table.frame.columns if column.endswith("_id")]
    if len(ids) != 1 or "token_length" not in table.fields:
        raise UserError(f"{found[0]}: found keys {', '.join(table.frame.columns)}, expected one …_id and token_length")
    pairs = zip(fields.integers(table, ids[0]), fields.tokens(table, "token_length"), strict=True)
    return dict(pairs)


def _has_segments(raw: RawTable) -> bool:
    dtype = raw.frame.schema["hash_ids"]
    return isinstance(dtype, pl.Struct) and {field.name for field in dtype.fields} >= set(_TABLES)


READER = Reader(
    name="ragpulse",
    summary="RAGPulse JSON lines: timestamp [s], hash_ids of segments, lengths in five tables beside it; or its folder",
    kinds=("jsonl",),
    recognises=lambda found: found >= {"timestamp", "input_length", "output_length", "session_id", "hash_ids"},
    read=_read,
    accepts=_has_segments,
)
