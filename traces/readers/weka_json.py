"""kv-cache-tester's own files: JSON, one object a session, sub-agents nested in its list of requests."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import polars as pl

from ground.errors import UserError
from traces.readers.agent_calls import Call, Session, SubAgent
from traces.readers.raw import RawTable, decompressed, json_document


def sessions(raw: RawTable) -> Iterator[Session]:
    """The sessions of one JSON file, of a folder of them, or of JSON lines.

    Raises:
        UserError: names the file, the entry and the key that is missing or of another type.
    """
    row = 0

    def next_row() -> int:
        nonlocal row
        row += 1
        return row - 1

    for where, document in _documents(raw):
        name, requests = document.get("id"), document.get("requests")
        if name is None or not isinstance(requests, list):
            raise UserError(f"{where}: expected a session with `id` and a list `requests`")
        yield Session(
            str(name),
            _whole(where, document, "block_size", 64),
            document.get("hash_id_scope") != "global",
            tuple(_entry(f"{where}: requests[{place}]", entry, 0.0, next_row) for place, entry in enumerate(requests)),
        )


def _documents(raw: RawTable) -> Iterator[tuple[str, dict[str, Any]]]:
    for path in raw.files:
        yield str(path), json_document(path)
    if raw.kind == "jsonl":
        lines = (line for line in decompressed(Path(raw.path)).splitlines() if line.strip())
        for place, line in enumerate(lines):
            yield f"{raw.path}: data row {place} (from 0)", json.loads(line)


def _entry(where: str, entry: Any, began: float, next_row: Callable[[], int]) -> Call | SubAgent:
    """A call or a sub-agent; `began` is when its agent began, on the session's clock."""
    if not isinstance(entry, dict):
        raise UserError(f"{where}: found {type(entry).__name__}, expected an object")
    start = began + _seconds(where, entry, "t", needed=True)
    if entry.get("type") == "subagent":
        background = entry.get("status") == "async_launched"
        # A sub-agent that was waited for is recorded when its result came back, one in the background when it began.
        duration = _seconds(where, entry, "duration_ms") if not background else 0.0
        launched = max(start - duration / 1000, began)
        calls = entry.get("requests")
        if not isinstance(calls, list):
            raise UserError(f"{where}: expected a list `requests` in a sub-agent")
        inner = (_entry(f"{where}.requests[{n}]", call, launched, next_row) for n, call in enumerate(calls))
        return SubAgent(tuple(inner), background)
    ids = entry.get("hash_ids") or []
    try:
        blocks = pl.Series(ids, dtype=pl.Int64, strict=True)
    except (TypeError, pl.exceptions.PolarsError) as error:
        raise UserError(f"{where}: key 'hash_ids': expected a list of whole numbers") from error
    return Call(
        next_row(),
        start,
        _optional(where, entry, "api_time"),
        _optional(where, entry, "think_time"),
        _optional(where, entry, "ttft"),
        _whole(where, entry, "in"),
        _whole(where, entry, "out"),
        entry.get("model"),
        blocks,
    )


def _optional(where: str, entry: Mapping[str, Any], key: str) -> float | None:
    return None if entry.get(key) is None else _seconds(where, entry, key)


def _seconds(where: str, entry: Mapping[str, Any], key: str, *, needed: bool = False) -> float:
    value = entry.get(key)
    if value is None and not needed:
        return 0.0
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise UserError(f"{where}: key {key!r}: found {value!r}, expected a finite time of at least 0")
    return float(value)


def _whole(where: str, entry: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = entry.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise UserError(f"{where}: key {key!r}: found {value!r}, expected a whole number of at least 0")
    return value
