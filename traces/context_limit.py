"""What a client does that sends only the end of a long conversation: prompts cut to the last tokens."""

from __future__ import annotations

from dataclasses import replace

import polars as pl
from pydantic import PositiveInt, model_validator

from ground.errors import UserError
from ground.spec import Spec
from traces.table import Trace


class ContextLimit(Spec):
    """Prompts longer than `tokens` lose their beginning, `drop` tokens at a time.

    With a small `drop` almost every turn begins at another token, so that no prefix is ever found again; with a large
    one the turns in between begin alike.
    """

    tokens: PositiveInt
    drop: PositiveInt = 16

    @model_validator(mode="after")
    def _leaves_something(self) -> ContextLimit:
        if self.drop > self.tokens:
            raise ValueError(f"drop is {self.drop} and tokens {self.tokens}; expected to drop no more than is sent")
        return self


def limit_context(trace: Trace, limit: ContextLimit) -> Trace:
    """The trace as such a client sends it.

    A block of a prompt that lost its beginning equals another one if both lost as much and their whole prompts are
    equal up to there, so its new prefix id stands for the pair of both.

    Raises:
        UserError: `drop` is no multiple of the tokens that the prefix ids stand for.
    """
    requests = trace.requests
    over = pl.col("prompt_tokens") - limit.tokens
    lost = pl.when(over > 0).then((over + limit.drop - 1) // limit.drop * limit.drop).otherwise(0)
    requests = requests.with_columns(lost=lost)
    if "prefix_ids" in requests.columns:
        requests = requests.with_columns(prefix_ids=_cut_ids(requests, limit, trace.source))
    shortened = requests.with_columns(pl.col("prompt_tokens") - pl.col("lost"))
    count = int((requests["lost"] > 0).sum())
    notes = {**trace.notes, "context_limit": limit.model_dump(), "prompts_cut": count}
    return replace(trace, requests=shortened.drop("lost"), notes=notes)


def _cut_ids(requests: pl.DataFrame, limit: ContextLimit, source: str) -> pl.Series:
    block = pl.col("prefix_block_tokens")
    cut = requests.filter(pl.col("lost") > 0)
    uneven = cut.filter(pl.col("lost") % block != 0)
    if len(uneven):
        raise UserError(
            f"{source}: context_limit.drop is {limit.drop} and prefix ids stand for "
            f"{uneven['prefix_block_tokens'][0]} tokens; expected a multiple of that"
        )
    rows = (
        cut.select("request_id", "lost", id=pl.col("prefix_ids").list.slice(pl.col("lost") // block))
        .explode("id", keep_nulls=False, empty_as_null=False)
        .with_columns(pair=pl.struct("lost", "id").rank("dense").cast(pl.Int64))
    )
    first = requests["prefix_ids"].explode(keep_nulls=False, empty_as_null=False).max()
    renamed = rows.group_by("request_id", maintain_order=True).agg(new=pl.col("pair") + (0 if first is None else first))
    joined = requests.join(renamed, on="request_id", how="left", maintain_order="left")
    whole, none = pl.col("lost") == 0, pl.lit([], dtype=pl.List(pl.Int64))
    return joined.select(ids=pl.when(whole).then("prefix_ids").otherwise(pl.coalesce("new", none)))["ids"]
