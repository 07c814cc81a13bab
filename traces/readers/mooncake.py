"""Mooncake's JSON lines: times in ms, one chain hash id a 512-token block, the last block usually partial.

Conversation arrivals are quantised to batches of about 3 s: see traces/dequantise.py.
"""

from __future__ import annotations

from traces.readers import fields
from traces.readers.assemble import assemble
from traces.readers.raw import RawTable
from traces.readers.reader import Reader
from traces.table import Trace

BLOCK_TOKENS = 512
_KEYS = frozenset({"timestamp", "input_length", "output_length"})


def _read(raw: RawTable) -> Trace:
    columns = {
        "arrival": fields.seconds(raw, "timestamp", per_second=1000),
        "prompt_tokens": fields.tokens(raw, "input_length"),
        "output_tokens": fields.tokens(raw, "output_length"),
    }
    if "hash_ids" in raw.fields:
        columns["prefix_ids"] = fields.id_lists(raw, "hash_ids")
        columns["prefix_block_tokens"] = fields.constant(BLOCK_TOKENS, len(raw.frame))
    return assemble(raw, columns, READER.name)


READER = Reader(
    name="mooncake",
    summary="Mooncake JSON lines: timestamp [ms], input_length, output_length, hash_ids (512-token chain)",
    kinds=("jsonl",),
    recognises=lambda found: found >= _KEYS and found <= _KEYS | {"hash_ids"},
    read=_read,
)
