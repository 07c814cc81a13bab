"""The invariants of the canonical table, checked on whatever claims to be one."""

from __future__ import annotations

import polars as pl

from ground.errors import UserError
from traces.table import COLUMNS, REQUIRED, Trace

_IN_ORDER = "arrival must not run back"  # between sessions that have no common clock there is no order

# What must hold in every row. `null` results pass: an optional value that is absent breaks no rule.
_ROW_RULES: dict[str, tuple[tuple[str, ...], pl.Expr]] = {
    "request_id must count 0, 1, 2, …": (("request_id",), pl.col("request_id") == pl.int_range(pl.len())),
    "arrival must be finite and at least 0": (
        ("arrival",),
        pl.col("arrival").is_finite() & (pl.col("arrival") >= 0),
    ),
    _IN_ORDER: (
        ("arrival",),
        pl.col("arrival") >= pl.col("arrival").forward_fill().shift(1),
    ),
    "prompt_tokens must be at least 1": (("prompt_tokens",), pl.col("prompt_tokens") >= 1),
    "output_tokens must be at least 1": (("output_tokens",), pl.col("output_tokens") >= 1),
    "turn must be at least 0": (("turn",), pl.col("turn") >= 0),
    "parent must be an earlier request_id": (
        ("parent",),
        (pl.col("parent") >= 0) & (pl.col("parent") < pl.col("request_id")),
    ),
    "think_time must be finite and at least 0": (
        ("think_time",),
        pl.col("think_time").is_finite() & (pl.col("think_time") >= 0),
    ),
    "prefix_ids must not be longer than the blocks of prompt and output": (
        ("prefix_ids", "prefix_block_tokens"),
        pl.col("prefix_ids").list.len()
        <= (
            (pl.col("prompt_tokens") + pl.col("output_tokens") + pl.col("prefix_block_tokens") - 1)
            // pl.col("prefix_block_tokens")
        ),
    ),
    "prefix_ids need prefix_block_tokens of at least 1": (
        ("prefix_ids", "prefix_block_tokens"),
        pl.col("prefix_ids").is_null() | (pl.col("prefix_block_tokens").fill_null(0) >= 1),
    ),
    "deadline must be above 0": (("deadline",), pl.col("deadline") > 0),
}


def check(trace: Trace) -> None:
    """Raise a UserError that names the first row in which the table breaks a rule of its contract."""
    requests = trace.requests
    missing = [name for name in REQUIRED if name not in requests.columns]
    if missing:
        raise UserError(f"{trace.source}: column {missing[0]!r} is missing, expected {', '.join(REQUIRED)}")
    for name, dtype in requests.schema.items():
        if name not in COLUMNS:
            raise UserError(f"{trace.source}: column {name!r} is not one of {', '.join(COLUMNS)}")
        if dtype != COLUMNS[name][0]:
            raise UserError(f"{trace.source}: column {name!r} has type {dtype}, expected {COLUMNS[name][0]}")
    if "prefix_ids" in requests.columns and "prefix_block_tokens" not in requests.columns:
        raise UserError(f"{trace.source}: prefix_ids need the column prefix_block_tokens")
    for name in ("request_id", "prompt_tokens", "output_tokens"):
        _refuse(trace, requests[name].is_null(), f"{name} must not be null")
    unplaced = requests["arrival"].is_null()
    if "parent" in requests.columns:
        unplaced &= requests["parent"].is_null()
    _refuse(trace, unplaced, "arrival must not be null without a parent")
    for rule, (needs, holds) in _ROW_RULES.items():
        if set(needs) <= set(requests.columns) and not (rule == _IN_ORDER and trace.clock == "session"):
            _refuse(trace, ~requests.select(holds.fill_null(True).alias("holds"))["holds"], rule)
    if len(requests) + sum(trace.dropped.values()) != trace.rows_read:
        raise UserError(
            f"{trace.source}: {len(requests)} requests and {sum(trace.dropped.values())} dropped rows do not add up to "
            f"the {trace.rows_read} rows read"
        )


def _refuse(trace: Trace, broken: pl.Series, rule: str) -> None:
    rows = broken.arg_true()
    if len(rows):
        row = trace.requests.row(int(rows[0]), named=True)
        found = {name: row[name] for name in (*REQUIRED, "parent") if name in row}
        raise UserError(f"{trace.source}: request {rows[0]}: {rule}; found {found}")
