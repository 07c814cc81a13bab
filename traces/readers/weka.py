"""WEKA's kv-cache-tester: recorded coding agents, each session on a clock of its own.

Calls are closed loop: only a session's first call has an arrival, at 0 of its session; every other one is sent a think
time after the call it waits for (traces/readers/agent_calls.py). A hash id stands for a full 64-token block; ids of
different sessions are kept apart, since the source numbers each session for itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import polars as pl

from traces.readers import fields, weka_json, weka_parquet
from traces.readers.agent_calls import Linked, Links, Session
from traces.readers.assemble import assemble
from traces.readers.raw import RawTable
from traces.readers.reader import Reader
from traces.table import COLUMNS, Trace

_DOCUMENT = frozenset({"id", "block_size", "requests"})


def _read(raw: RawTable) -> Trace:
    columns, links = _columns((weka_parquet if raw.kind == "parquet" else weka_json).sessions(raw))
    notes: dict[str, Any] = {
        "clock": "each session has its own",
        "turns": "closed loop; calls that failed are left out and the next one waits for the call before them",
        "prefix": "tools and system prompt are shared between sessions in truth; ids of one session each hide it",
    }
    counts = {
        "sub_agents": links.sub_agents,
        "sub_agents_in_background": links.in_background,
        "calls_that_began_before_their_parent_ended": links.overlaps,
        "think_times_unknown": links.unknown_think_times,
    }
    notes |= {name: count for name, count in counts.items() if count}
    return assemble(raw, columns, READER.name, notes=notes, clock="session")


def _columns(sessions: Iterable[Session]) -> tuple[dict[str, pl.Series], Links]:
    links = Links()
    session_of: list[Session] = []
    id_base: list[int] = []
    next_id = 0
    for session in sessions:
        first = len(links.calls)
        links.follow(session.calls)
        mine = links.calls[first:]
        session_of += [session] * len(mine)
        id_base += [next_id if session.own_ids else 0] * len(mine)
        next_id += 1 + max((_largest(linked) for linked in mine), default=-1)
    position = {linked.call.row: place for place, linked in enumerate(links.calls)}
    calls = [linked.call for linked in links.calls]
    ids = [call.blocks + base for call, base in zip(calls, id_base, strict=True)]
    # Without a type polars takes the lists as they are; with one it visits every id, and there are 94 million.
    prefix_ids = pl.Series("prefix_ids", ids) if ids else pl.Series("prefix_ids", [], dtype=pl.List(pl.Int64))
    values: dict[str, list[Any]] = {
        "arrival": [linked.call.start if linked.parent is None else None for linked in links.calls],
        "prompt_tokens": [call.prompt_tokens for call in calls],
        "output_tokens": [call.output_tokens for call in calls],
        "session": [session.name for session in session_of],
        "parent": [None if linked.parent is None else position[linked.parent] for linked in links.calls],
        "think_time": [linked.think_time for linked in links.calls],
        "prefix_block_tokens": [session.block_tokens for session in session_of],
        "model": [call.model for call in calls],
        "source_ttft": [call.ttft for call in calls],
        "source_e2e": [call.api_time for call in calls],
        "source_row": [call.row for call in calls],
    }
    columns = {name: pl.Series(name, cells, dtype=COLUMNS[name][0]) for name, cells in values.items()}
    return columns | {"prefix_ids": prefix_ids, "turn": fields.place_among_equals(columns["session"])}, links


def _largest(linked: Linked) -> int:
    largest = linked.call.blocks.max()
    return -1 if largest is None else int(largest)  # type: ignore[arg-type]


READER = Reader(
    name="weka",
    summary="WEKA kv-cache-tester: JSON a session (t [s], in, out, hash_ids), a folder of them, or requests.parquet",
    kinds=("json", "jsonl", "parquet"),
    recognises=lambda found: found >= _DOCUMENT or found >= weka_parquet.COLUMNS,
    read=_read,
)
