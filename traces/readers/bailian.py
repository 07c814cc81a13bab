"""Alibaba's Bailian (Qwen) traces: times in s, one chain hash id a 16-token block, the last block usually partial.

Turns are open loop: the source says when each was sent, but not when the answer before it had ended, so how long the
user thought is not known. Session, turn and parent say which conversation a request belongs to.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import polars as pl

from traces.readers import fields
from traces.readers.assemble import assemble
from traces.readers.raw import RawTable
from traces.readers.reader import Reader
from traces.table import Trace

BLOCK_TOKENS = 16
ROOT = -1


def _read(raw: RawTable) -> Trace:
    arrival = fields.seconds(raw, "timestamp")
    chats = fields.integers(raw, "chat_id").to_list()
    parents = fields.integers(raw, "parent_chat_id").fill_null(ROOT).to_list()
    row_of = {chat: row for row, chat in enumerate(chats)}
    known = [row_of.get(parent) if parent != ROOT else None for parent in parents]
    sent = arrival.to_list()
    parent_rows = [
        before if before is not None and (sent[before], before) < (sent[row], row) else None
        for row, before in enumerate(known)
    ]
    columns = {
        "arrival": arrival,
        "prompt_tokens": fields.tokens(raw, "input_length"),
        "output_tokens": fields.tokens(raw, "output_length"),
        "session": pl.Series(_roots(chats, parents), dtype=pl.Int64).cast(pl.String),
        "parent": pl.Series(parent_rows, dtype=pl.Int64),
    }
    if "turn" in raw.fields:
        columns["turn"] = fields.integers(raw, "turn") - 1  # the source counts from 1
    if "hash_ids" in raw.fields:
        columns["prefix_ids"] = fields.id_lists(raw, "hash_ids")
        columns["prefix_block_tokens"] = fields.constant(BLOCK_TOKENS, len(raw.frame))
    notes: dict[str, Any] = {
        "turns": "open loop: a turn arrives when the source says; parent only tells what it follows"
    }
    outside = sum(parent != ROOT and row is None for parent, row in zip(parents, known, strict=True))
    if outside:
        notes["parents_not_in_file"] = outside
    later = sum(row is not None for row in known) - sum(row is not None for row in parent_rows)
    if later:
        notes["parents_that_arrive_later"] = later
    if "type" in raw.fields:
        types = raw.frame["type"].cast(pl.String).value_counts().drop_nulls().sort("type")
        notes["types"] = dict(types.iter_rows())
    return assemble(raw, columns, READER.name, notes=notes)


def _roots(chats: Sequence[int], parents: Sequence[int]) -> list[int]:
    """For each row the chat that its conversation began with, be that in the file or not."""
    parent_of = dict(zip(chats, parents, strict=True))
    root_of: dict[int, int] = {}
    for chat in chats:
        path: list[int] = []
        seen: set[int] = set()
        here = chat
        while here not in root_of and here not in seen and parent_of.get(here, ROOT) != ROOT:
            path.append(here)
            seen.add(here)
            here = parent_of[here]
        root = root_of.get(here, here)
        root_of.update(dict.fromkeys([*path, here], root))
    return [root_of[chat] for chat in chats]


READER = Reader(
    name="bailian",
    summary="Bailian (Qwen) JSON lines: chat_id, parent_chat_id, timestamp [s], input_length, output_length, hash_ids",
    kinds=("jsonl",),
    recognises=lambda found: found >= {"chat_id", "parent_chat_id", "timestamp", "input_length", "output_length"},
    read=_read,
)
