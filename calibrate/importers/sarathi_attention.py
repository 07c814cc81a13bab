"""Attention timed in the form of Sarathi's profiler, which Vidur and older LLMServingSim profiles share."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from ground.errors import UserError

_PREFILL = "time_stats.attn_prefill.median"
_DECODE = "time_stats.attn_decode.median"
_SAVE = "time_stats.attn_kv_cache_save.median"
_COUNTS = ("batch_size", "prefill_chunk_size", "kv_cache_size", "num_tensor_parallel_workers")


def attention_rows(table: pl.DataFrame, tp: int, path: Path, *, counts_all_keys: bool = False) -> pl.DataFrame:
    """The rows of one rank at `tp` as a profile's table `attention`; `path` is what an error names.

    A row with prefill_chunk_size > 0 (and batch_size 1; others are left out) is a prefill of that chunk behind
    kv_cache_size cached tokens; one with prefill_chunk_size 0 is batch_size sequences that each decode one token
    behind kv_cache_size. Milliseconds become seconds. Where writing the KV cache was timed apart
    (attn_kv_cache_save) it is added, since an engine's attention layer does it. A point timed more than once gets
    the median.

    With `counts_all_keys` kv_cache_size is all keys of the call, as in LLMServingSim's adaptation of the profiler
    (llm_profile/profiler/attention/attention_profiler.py): the new tokens' own among them, and of a decoding batch
    the sum, of which each sequence has an equal share. Rows with fewer keys than new tokens are left out.

    Returns:
        Columns prefill_chunk, kv_prefill, n_decode, kv_decode, seconds; each point once, sorted.

    Raises:
        UserError: a column is missing or not of numbers, a time is empty or impossible, no row is of `tp`, rows of
            one of the two kinds are missing, or rows of several backends or block sizes are mixed.
    """
    for column in (*_COUNTS, _PREFILL, _DECODE):
        if column not in table.columns:
            raise UserError(f"{path}: column {column} is missing; found {', '.join(table.columns)}")
    timed = [column for column in (_PREFILL, _DECODE, _SAVE) if column in table.columns]
    for column in (*_COUNTS, *timed):
        if not table[column].dtype.is_numeric() and table[column].dtype != pl.Null:
            raise UserError(f"{path}: column {column} is {table[column].dtype}; expected numbers")
    rows = table.with_row_index("row").filter(pl.col("num_tensor_parallel_workers") == tp)
    if rows.is_empty():
        measured = ", ".join(str(n) for n in table["num_tensor_parallel_workers"].unique().sort())
        raise UserError(f"{path}: no row has num_tensor_parallel_workers {tp}; found {measured}")
    for column in ("attention_backend", "block_size"):
        if column in rows.columns and rows[column].n_unique() > 1:
            found = ", ".join(str(value) for value in rows[column].unique().sort())
            raise UserError(f"{path}: column {column} mixes {found}; expected one")

    is_prefill = pl.col("prefill_chunk_size") > 0
    cached = pl.col("kv_cache_size")
    if counts_all_keys:
        behind_chunk = pl.col("kv_cache_size") - pl.col("prefill_chunk_size")
        cached = pl.when(is_prefill).then(behind_chunk).otherwise(pl.col("kv_cache_size") // pl.col("batch_size") - 1)
    rows = rows.with_columns(cached=cached).filter(pl.col("cached") >= 0)
    save = pl.col(_SAVE).fill_null(0.0) if _SAVE in rows.columns else pl.lit(0.0)
    rows = rows.filter(~is_prefill | (pl.col("batch_size") == 1)).select(
        "row",
        prefill_chunk=pl.col("prefill_chunk_size"),
        kv_prefill=pl.when(is_prefill).then("cached").otherwise(0),
        n_decode=pl.when(is_prefill).then(0).otherwise("batch_size"),
        kv_decode=pl.when(is_prefill).then(0).otherwise("cached"),
        seconds=(pl.when(is_prefill).then(_PREFILL).otherwise(_DECODE).cast(pl.Float64) + save) / 1000,
    )
    is_chunk = pl.col("prefill_chunk") > 0
    for kind, of_kind in (("prefill", is_chunk), ("decode", ~is_chunk)):
        if rows.filter(of_kind).is_empty():
            raise UserError(f"{path}: no {kind} row at num_tensor_parallel_workers {tp}; expected both kinds")
    bad = rows.filter(pl.col("seconds").is_null() | ~pl.col("seconds").is_finite() | (pl.col("seconds") <= 0))
    if not bad.is_empty():
        column = _PREFILL if bad["prefill_chunk"][0] else _DECODE
        found = "empty" if bad["seconds"][0] is None else f"{1000 * bad['seconds'][0]:g}"
        raise UserError(f"{path}: row {bad['row'][0]}, column {column} is {found}; expected a time in milliseconds")
    keys = ("prefill_chunk", "kv_prefill", "n_decode", "kv_decode")
    return rows.group_by(keys).agg(pl.col("seconds").median()).sort(keys)
