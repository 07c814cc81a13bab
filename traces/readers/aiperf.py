"""aiperf's form of the Mooncake format: sessions, whose later rows carry a delay instead of a time stamp.

What a row means follows aiperf's own loader. Rows of one `session_id` are turns, in the order of the file. A turn
without a time stamp is sent `delay` ms after the answer before it (closed loop). By default a row holds only what is
new in its turn: the prompt is all earlier prompts and answers, and then `input_length` new tokens. `context_mode` says
otherwise: `deltas_with_responses` (answers are part of the next row) or `message_array_with_responses` (a row holds the
whole prompt). Rows that give text instead of `input_length` have no token counts and are refused.
"""

from __future__ import annotations

from typing import Any

import polars as pl

from ground.errors import UserError
from traces.readers import fields, mooncake
from traces.readers.assemble import assemble
from traces.readers.delta_prefixes import PLAIN_BLOCK, block_tokens, delta_prompts
from traces.readers.raw import RawTable
from traces.readers.reader import Reader
from traces.table import COLUMNS, Trace

_TEXT = ("text_input", "messages", "payload")
_OTHERS = ("tools", "extra", "message_mode", "type", "group_id", "is_restart")  # nothing in them changes the load
_KEYS = {"timestamp", "input_length", "output_length", "hash_ids", "session_id", "delay", "context_mode"}
DEFAULT_MODE = "deltas_without_responses"
MODES = (DEFAULT_MODE, "deltas_with_responses", "message_array_with_responses")


def _read(raw: RawTable) -> Trace:
    _refuse_text(raw)
    rows = len(raw.frame)
    new_tokens, output = fields.tokens(raw, "input_length"), fields.tokens(raw, "output_length")
    given = raw.frame["session_id"].cast(pl.String) if "session_id" in raw.fields else pl.Series([None] * rows)
    # A row without a session is one of its own; a name from the file never looks like its row number.
    alone = pl.int_range(rows, eager=True).cast(pl.String)
    session = pl.select(pl.coalesce(given.cast(pl.String), "row " + alone)).to_series()
    turn = fields.place_among_equals(session)
    arrival, clock, kept_stamps = _arrivals(raw, session, turn)
    parent = _row_before(session)
    released = arrival.is_null() & parent.is_not_null()
    delay = _milliseconds(raw, "delay").fill_null(0.0)

    mode = _modes(raw, session)
    ids = fields.id_lists(raw, "hash_ids") if "hash_ids" in raw.fields else None
    block = PLAIN_BLOCK if ids is None else block_tokens(raw, new_tokens, ids)
    prompt, prefix_ids = delta_prompts(session, new_tokens, output, mode, ids, block)
    columns: dict[str, pl.Series] = {
        "arrival": arrival,
        "prompt_tokens": pl.Series(prompt, dtype=pl.Int64),
        "output_tokens": output,
        "session": session,
        "turn": turn,
        "parent": parent,
        "think_time": pl.select(pl.when(released).then(delay)).to_series(),
    }
    if ids is not None or parent.is_not_null().any():
        columns["prefix_ids"] = pl.Series(prefix_ids, dtype=COLUMNS["prefix_ids"][0])
        columns["prefix_block_tokens"] = fields.constant(block, rows)
    notes: dict[str, Any] = {"context_mode": sorted(set(mode)), "turns": "closed loop where a row has no time stamp"}
    if clock == "session":
        notes["clock"] = "no row has a time stamp"
    if kept_stamps:
        notes["later_turns_with_time_stamps"] = f"{kept_stamps}, open loop: sent then, ended answer or not"
    return assemble(raw, columns, READER.name, notes=notes, clock=clock)


def _refuse_text(raw: RawTable) -> None:
    if "input_length" not in raw.fields:
        text = next(name for name in _TEXT if name in raw.fields)
        raise UserError(f"{raw.path}: rows give {text!r} and no 'input_length'; expected token counts, not text")
    if "output_length" not in raw.fields:
        raise UserError(f"{raw.path}: key 'output_length' is missing, expected the tokens of every answer")
    for name in _TEXT:
        if name in raw.fields and raw.frame[name].is_not_null().any():
            row = int(raw.frame[name].is_not_null().arg_true()[0])
            raise UserError(
                f"{raw.path}: data row {row} (from 0): found {name!r}, expected 'input_length': text has no token count"
            )


def _arrivals(raw: RawTable, session: pl.Series, turn: pl.Series) -> tuple[pl.Series, Any, int]:
    """(arrivals in seconds, whose clock, later turns that have a time stamp)."""
    stamps = _milliseconds(raw, "timestamp")
    first = turn == 0
    missing = (first & stamps.is_null()).arg_true()
    if stamps.null_count() == len(stamps):
        return pl.select(pl.when(first).then(0.0)).to_series(), "session", 0
    if len(missing):
        row = int(missing[0])
        raise UserError(
            f"{raw.path}: data row {row} (from 0): session {session[row]!r} begins without a 'timestamp' and others "
            "have one, expected it in the first row of every session or in none"
        )
    return stamps, "shared", int((~first & stamps.is_not_null()).sum())


def _milliseconds(raw: RawTable, column: str) -> pl.Series:
    if column not in raw.fields:
        return pl.Series(column, [None] * len(raw.frame), dtype=pl.Float64)
    return fields.seconds(raw, column, per_second=1000, nullable=True)


def _row_before(session: pl.Series) -> pl.Series:
    """For each row the one before it in its session."""
    table = pl.DataFrame({"session": session, "row": pl.int_range(len(session), dtype=pl.Int64, eager=True)})
    return table.select(pl.col("row").shift().over("session"))["row"]


def _modes(raw: RawTable, session: pl.Series) -> list[str]:
    """The context mode of each row; one session has one."""
    if "context_mode" not in raw.fields:
        return [DEFAULT_MODE] * len(session)
    modes = raw.frame["context_mode"].cast(pl.String).fill_null(DEFAULT_MODE)
    unknown = (~modes.is_in(MODES)).arg_true()
    if len(unknown):
        fields.refuse_row(raw, "context_mode", int(unknown[0]), f"one of {', '.join(MODES)}")
    first = pl.DataFrame({"mode": modes, "session": session}).select(pl.col("mode").first().over("session"))["mode"]
    mixed = (modes != first).arg_true()
    if len(mixed):
        fields.refuse_row(raw, "context_mode", int(mixed[0]), f"{first[mixed[0]]!r} as in the rows above")
    return modes.to_list()


def _recognises(found: frozenset[str]) -> bool:
    return (
        found <= _KEYS | set(_TEXT) | set(_OTHERS)
        and bool(found & {"input_length", *_TEXT})
        and bool(found & {"session_id", "delay", "timestamp", "output_length"})
        and not mooncake.READER.recognises(found)
    )


def _has_id_lists(raw: RawTable) -> bool:
    return "hash_ids" not in raw.fields or isinstance(raw.frame.schema["hash_ids"], pl.List)


READER = Reader(
    name="aiperf",
    summary="aiperf's Mooncake sessions: session_id, timestamp or delay [ms], input_length, output_length, hash_ids",
    kinds=("jsonl",),
    recognises=_recognises,
    read=_read,
    accepts=_has_id_lists,
)
