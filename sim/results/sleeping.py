"""Engines that slept: for how long, and what a GPU of theirs costs meanwhile."""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

from sim.results.tables import REPLICAS


def stays(events: pl.DataFrame, replicas: pl.DataFrame, shares: Mapping[str, float]) -> pl.DataFrame:
    """One row for each time that an engine slept, with the columns of `sim.results.tables.REPLICAS`: `requested` and
    `ended` are when it fell asleep and when it was woken, null if it never was; `gpu_hour_price` is the share of its
    pool's price. It is no replica meanwhile and has no number. Who sleeps longest is woken first.

    Args:
        events, replicas: tables with the columns of `sim.results.tables`.
        shares: of a replica's price that a sleeping engine costs, by the name of its pool.
    """
    of_pool = replicas.unique("pool", keep="first").select("pool", "site", "gpu_hour_price")
    told = events.filter(pl.col("kind").is_in(["asleep", "woken"])).select(
        "kind", "time", pool=pl.col("detail").fill_null(""), gpus=pl.col("amount").cast(pl.Int32)
    )
    nth = told.sort("time", maintain_order=True).with_columns(nth=pl.int_range(pl.len()).over("pool", "kind"))
    woken = nth.filter(pl.col("kind") == "woken").select("pool", "nth", ended="time")
    rows = nth.filter(pl.col("kind") == "asleep").join(woken, on=["pool", "nth"], how="left", maintain_order="left")
    share = pl.col("pool").replace_strict(dict(shares), default=None, return_dtype=pl.Float64)
    return (
        rows.join(of_pool, on="pool", how="left", maintain_order="left")
        .with_columns(
            replica=pl.lit(None),
            gpu_hour_price=share * pl.col("gpu_hour_price"),
            kv_blocks=pl.lit(None),
            requested="time",
            ready=pl.lit(None),
            why=pl.lit(None),
        )
        .select(pl.col(name).cast(kind) for name, kind in REPLICAS.items())
    )
