"""LLMServingSim's JSON lines: times in ns; a row is a request, or a session of requests with tool calls between.

A session row holds `sub_requests`: each is sent `tool_duration_ns` of the one before it after that one has finished.
Token ids, where present, become chain ids of 16-token blocks.
"""

from __future__ import annotations

from collections.abc import Iterable

import polars as pl

from ground.errors import UserError
from traces.readers import fields
from traces.readers.assemble import assemble
from traces.readers.raw import RawTable
from traces.readers.reader import Reader
from traces.table import Trace

BLOCK_TOKENS = 16


def _read(raw: RawTable) -> Trace:
    calls = _calls(raw)
    columns = {
        "source_row": calls.frame["_row"],
        "arrival": fields.seconds(calls, "arrival_time_ns", per_second=1e9, nullable=True),
        "prompt_tokens": fields.tokens(calls, "input_toks"),
        "output_tokens": fields.tokens(calls, "output_toks"),
    }
    first = calls.frame["_turn"] == 0
    missing = (first & columns["arrival"].is_null()).arg_true()
    if len(missing):
        fields.refuse_row(calls, "arrival_time_ns", int(missing[0]), "a time in ns")
    if not first.all():
        position = pl.int_range(len(first), dtype=pl.Int64, eager=True)
        columns |= {
            "session": calls.frame["session_id"].cast(pl.String),
            "turn": calls.frame["_turn"],
            "parent": pl.select(pl.when(~first).then(position - 1)).to_series(),
            "think_time": fields.seconds(calls, "_tool_ns_before", per_second=1e9, nullable=True),
        }
    if "input_tok_ids" in calls.fields:
        outputs = calls.frame["output_tok_ids"] if "output_tok_ids" in calls.fields else None
        columns["prefix_ids"] = _chain_ids(raw, calls.frame["input_tok_ids"], outputs)
        columns["prefix_block_tokens"] = pl.Series([BLOCK_TOKENS], dtype=pl.Int64).new_from_index(0, len(first))
    return assemble(raw, columns, READER.name)


def _calls(raw: RawTable) -> RawTable:
    """One row a request: session rows unfolded in place, every later turn without an arrival of its own."""
    frame = raw.frame.with_columns(_row=pl.int_range(pl.len(), dtype=pl.Int64))
    if "sub_requests" not in raw.fields:
        return RawTable(raw.path, raw.kind, frame.with_columns(_turn=pl.lit(0, dtype=pl.Int64)), {})
    if not isinstance(frame.schema["sub_requests"], pl.List) or frame.schema["sub_requests"].inner == pl.Null:
        raise UserError(f"{raw.path}: key 'sub_requests': expected a list of requests in every session")
    empty = (frame["sub_requests"].list.len() == 0).fill_null(False).arg_true()
    if len(empty):
        fields.refuse_row(raw, "sub_requests", int(empty[0]), "at least one request")
    if "session_id" not in frame.columns:
        frame = frame.with_columns(session_id=pl.col("_row").cast(pl.String))
    frame = frame.explode("sub_requests")
    calls = frame["sub_requests"].struct.unnest()
    # A flat row beside session rows keeps its own values; a session row takes those of its requests.
    frame = frame.drop("sub_requests").with_columns(
        pl.coalesce(calls[name], frame[name]).alias(name) if name in frame.columns else calls[name]
        for name in calls.columns
        if name not in ("_row", "session_id", "arrival_time_ns")
    )
    turn = pl.int_range(pl.len(), dtype=pl.Int64).over("_row")
    tool = pl.col("tool_duration_ns") if "tool_duration_ns" in frame.columns else pl.lit(0, dtype=pl.Int64)
    frame = frame.with_columns(_turn=turn, _tool_ns_before=tool.fill_null(0).shift(1).over("_row"))
    frame = frame.with_columns(
        arrival_time_ns=pl.when(pl.col("_turn") == 0).then("arrival_time_ns"),
        _tool_ns_before=pl.when(pl.col("_turn") > 0).then("_tool_ns_before"),
    )
    return RawTable(raw.path, raw.kind, frame, {})


def _chain_ids(raw: RawTable, prompts: pl.Series, outputs: pl.Series | None) -> pl.Series:
    """Chain ids of the full 16-token blocks of prompt and output.

    An id is the place of first use of (id of the block before, the block's tokens): equal ids are equal tokens, with
    no chance of a hash collision.
    """
    seen: dict[tuple[int, tuple[int, ...]], int] = {}

    def chain(tokens: list[int]) -> Iterable[int]:
        parent = -1
        for start in range(0, len(tokens) - BLOCK_TOKENS + 1, BLOCK_TOKENS):
            parent = seen.setdefault((parent, tuple(tokens[start : start + BLOCK_TOKENS])), len(seen))
            yield parent

    if not isinstance(prompts.dtype, pl.List) or not (
        prompts.dtype.inner.is_integer() or prompts.dtype.inner == pl.Null
    ):
        raise UserError(f"{raw.path}: key 'input_tok_ids': found {prompts.dtype}, expected a list of token ids")
    rows = zip(prompts.to_list(), outputs.to_list() if outputs is not None else [None] * len(prompts), strict=True)
    ids = [None if prompt is None else list(chain(prompt + (output or []))) for prompt, output in rows]
    return pl.Series("prefix_ids", ids, dtype=pl.List(pl.Int64))


READER = Reader(
    name="llmservingsim",
    summary="LLMServingSim JSON lines: arrival_time_ns, input_toks, output_toks, [input_tok_ids]; or sub_requests",
    kinds=("jsonl",),
    recognises=lambda found: (
        "arrival_time_ns" in found and (found >= {"input_toks", "output_toks"} or "sub_requests" in found)
    ),
    read=_read,
)
