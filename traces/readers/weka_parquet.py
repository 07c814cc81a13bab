"""kv-cache-tester's sessions as Parquet: requests.parquet, with subagents.parquet and traces.parquet beside it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import polars as pl

from ground.errors import UserError
from traces.readers import fields
from traces.readers.agent_calls import Call, Session, SubAgent
from traces.readers.raw import RawTable, open_raw

COLUMNS = frozenset({"trace_id", "entry_index", "sub_index", "t_s", "input_tokens", "output_tokens", "hash_ids"})


def sessions(raw: RawTable) -> Iterator[Session]:
    """The sessions in the order of the file.

    Raises:
        UserError: a companion is missing that the rows need, or a cell does not fit.
    """
    calls = _calls(raw)
    about = _companion(raw, "traces")
    block_tokens = dict(zip(about.frame["trace_id"], fields.integers(about, "block_size"), strict=True))
    scopes = dict(zip(about.frame["trace_id"], about.frame["hash_id_scope"], strict=True))
    has_sub_agents = raw.frame["sub_index"].is_not_null().any()
    launches = _launches(_companion(raw, "subagents")) if has_sub_agents else {}

    places = raw.frame.select("trace_id", "entry_index", "sub_index").with_row_index("row")
    for (trace_id,), rows in places.group_by("trace_id", maintain_order=True):
        if trace_id not in block_tokens:
            raise UserError(f"{about.path}: trace_id {trace_id!r} of {raw.path.name} is missing")
        entries: list[Call | SubAgent] = []
        ordered = rows.sort("entry_index", "sub_index", maintain_order=True)
        for (entry, in_sub_agent), members in ordered.group_by(
            "entry_index", pl.col("sub_index").is_not_null(), maintain_order=True
        ):
            held = [calls[row] for row in members["row"]]
            if not in_sub_agent:
                entries += held
                continue
            if (trace_id, entry) not in launches:
                raise UserError(f"{raw.path.parent / 'subagents.parquet'}: {trace_id}, entry {entry} is missing")
            began, background = launches[trace_id, entry]
            entries.append(SubAgent(tuple(_later(call, began) for call in held), background))
        scope = scopes[trace_id]
        yield Session(str(trace_id), block_tokens[trace_id], scope != "global", tuple(entries))


def _calls(raw: RawTable) -> list[Call]:
    """One call a row; a sub-agent's starts still count from its beginning."""
    frame = raw.frame

    def optional(name: str) -> list[float | None]:
        return fields.seconds(raw, name, nullable=True).to_list() if name in frame.columns else [None] * len(frame)

    columns: list[Any] = [
        fields.seconds(raw, "t_s").to_list(),
        optional("api_time_s"),
        optional("think_time_s"),
        optional("ttft_s"),
        fields.tokens(raw, "input_tokens").to_list(),
        fields.tokens(raw, "output_tokens").to_list(),
        frame["model"].to_list() if "model" in frame.columns else [None] * len(frame),
        fields.id_lists(raw, "hash_ids"),
    ]
    return [Call(row, *cells) for row, cells in enumerate(zip(*columns, strict=True))]


def _launches(table: RawTable) -> dict[tuple[str, int], tuple[float, bool]]:
    """(session, entry) → (when the sub-agent began, whether it ran in the background).

    A sub-agent that was waited for is recorded when its result came back, one in the background when it began.
    """
    background = (table.frame["status"] == "async_launched").fill_null(False)
    duration = fields.seconds(table, "duration_ms", per_second=1000, nullable=True).fill_null(0.0)
    recorded = fields.seconds(table, "t_s")
    began = pl.select(pl.when(background).then(recorded).otherwise((recorded - duration).clip(0))).to_series()
    keys = zip(table.frame["trace_id"], table.frame["entry_index"], strict=True)
    return dict(zip(keys, zip(began, background, strict=True), strict=True))


def _later(call: Call, seconds: float) -> Call:
    return Call(
        call.row,
        call.start + seconds,
        call.api_time,
        call.think_time,
        call.ttft,
        call.prompt_tokens,
        call.output_tokens,
        call.model,
        call.blocks,
    )


def _companion(raw: RawTable, name: str) -> RawTable:
    path = raw.path.parent / f"{name}.parquet"
    if not path.exists():
        raise UserError(f"{path}: is missing, expected beside {raw.path.name}")
    return open_raw(path)
