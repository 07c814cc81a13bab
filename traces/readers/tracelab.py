"""TraceLab's JSON lines: rounds of recorded coding agents, with the time of every event.

A round is sent when the last of its inputs is there (a user's message, a tool's result) and ends with its last output.
A session's first round has an arrival, every later one is sent as long after the end of the round before it as in the
recording: the tools' time and the user's. How many prompt tokens the source found in a cache is not content, so there
are no prefix ids.
"""

from __future__ import annotations

import polars as pl

from traces.readers import fields
from traces.readers.assemble import assemble
from traces.readers.raw import RawTable
from traces.readers.reader import Reader
from traces.table import Trace

_INPUTS = ("user_message", "tool_result")


def _read(raw: RawTable) -> Trace:
    events = _events(raw)
    table = raw.frame.select(
        pl.int_range(pl.len(), dtype=pl.Int64).alias("row"),
        pl.col("session_id").cast(pl.String).alias("session"),
        pl.col("model").cast(pl.String) if "model" in raw.fields else pl.lit(None, dtype=pl.String).alias("model"),
    ).with_columns(events)
    table = table.with_columns(
        turn=fields.place_among_equals(table["session"]),
        parent=pl.col("row").shift().over("session"),
        waits_from=pl.col("ended").shift().over("session"),
    )
    waits = pl.col("parent").is_not_null()
    table = table.select(
        arrival=pl.when(~waits).then("sent"),
        session="session",
        turn="turn",
        parent="parent",
        think_time=pl.when(waits).then((pl.col("sent") - pl.col("waits_from")).clip(0)),
        model="model",
        source_ttft=pl.col("first_output") - pl.col("sent"),
        source_e2e=pl.col("ended") - pl.col("sent"),
        overlaps=(pl.col("sent") < pl.col("waits_from")).fill_null(False),
    )
    columns = {name: table[name] for name in table.columns if name != "overlaps"}
    columns["prompt_tokens"] = fields.tokens(raw, "input_tokens_total")
    columns["output_tokens"] = fields.tokens(raw, "output_tokens")
    notes: dict[str, object] = {"turns": "closed loop: tools and users take the time that they took"}
    if table["overlaps"].any():
        notes["rounds_sent_before_the_last_had_ended"] = int(table["overlaps"].sum())
    return assemble(raw, columns, READER.name, notes=notes)


def _events(raw: RawTable) -> list[pl.Series]:
    """When each round was sent, gave its first output and ended, in seconds since 1970."""
    rounds = raw.frame.select(pl.int_range(pl.len()).alias("round"), "timing_events").explode("timing_events")
    event = pl.col("timing_events").struct
    flat = rounds.select(
        "round",
        kind=event.field("event_type"),
        at=event.field("timestamp").str.to_datetime("%Y-%m-%dT%H:%M:%S%.fZ", time_unit="us", strict=False),
    )
    is_input = pl.col("kind").is_in(_INPUTS)
    found = flat.group_by("round", maintain_order=True).agg(
        unread=pl.col("at").is_null().any(),
        sent=pl.col("at").filter(is_input).max(),
        first_output=pl.col("at").filter(~is_input).min(),
        ended=pl.col("at").filter(~is_input).max(),
    )
    no_order = found["sent"].is_null() | found["ended"].is_null() | (found["ended"] < found["sent"])
    bad = (found["unread"] | no_order.fill_null(True)).arg_true()
    if len(bad):
        expected = "an input and then an output, at times such as 2026-06-01T05:40:20.151Z"
        fields.refuse_row(raw, "timing_events", int(bad[0]), expected)
    return [(found[name].to_physical() / 1e6).alias(name) for name in ("sent", "first_output", "ended")]


READER = Reader(
    name="tracelab",
    summary="TraceLab JSON lines: session_id, input_tokens_total, output_tokens, timing_events [UTC]",
    kinds=("jsonl",),
    recognises=lambda found: (
        found >= {"session_id", "round_index", "input_tokens_total", "output_tokens", "timing_events"}
    ),
    read=_read,
)
