"""Whether an engine can serve the requests of a trace at all."""

from __future__ import annotations

import polars as pl

from ground.errors import UserError
from sim.engine.config import EngineConfig
from sim.engine.contiguous_pool import reserved_slots


def check_fit(requests: pl.DataFrame, engine: EngineConfig) -> None:
    """`requests` has the columns of `traces.table`. Those over the engine's `max_model_len` need not fit: it rejects
    them on arrival, as vLLM does.

    Raises:
        UserError: a request that the engine could never finish.
    """
    tokens = pl.col("prompt_tokens") + pl.col("output_tokens")
    if engine.max_model_len is not None:
        requests = requests.filter(tokens <= engine.max_model_len)
    if engine.kv_cache and engine.reserved_blocks >= engine.kv_blocks:
        raise UserError(
            f"engine.reserved_blocks is {engine.reserved_blocks} and the KV pool has {engine.kv_blocks} blocks; "
            "expected fewer, so that requests find any"
        )
    # The last token is never computed, so it needs no place.
    budget, pool = engine.max_num_batched_tokens, (engine.kv_blocks - engine.reserved_blocks) * engine.block_size
    most = engine.most_tokens
    if not engine.enable_chunked_prefill and (budget < pool or most is not None or not engine.kv_cache):
        what = f"max_num_batched_tokens is {budget} and chunked prefill is off"
        _refuse(requests.filter(tokens - 1 > budget), what)
    if engine.kv_reservation != "paged":
        what = f"kv_reservation is {engine.kv_reservation} and the KV pool has {pool} token slots"
        _refuse(requests.filter(_reserved(requests, engine) > pool), what)
    elif engine.kv_cache and (most is None or most > pool):
        what = f"the KV pool has {engine.kv_blocks} blocks of {engine.block_size}"
        _refuse(requests.filter(tokens - 1 > pool), what)


def _refuse(too_long: pl.DataFrame, what: str) -> None:
    """Raises UserError: `too_long` holds requests, which cannot run because of `what`."""
    if len(too_long):
        row = too_long.row(0, named=True)
        raise UserError(
            f"request {row['request_id']}: {row['prompt_tokens']} prompt + {row['output_tokens']} output tokens can "
            f"never run, {what} ({len(too_long)} such requests); set engine.max_model_len to have them rejected"
        )


def _reserved(requests: pl.DataFrame, engine: EngineConfig) -> pl.Series:
    """Token slots that each request would be admitted with, (requests,)."""
    lengths = requests.select("prompt_tokens", "output_tokens").iter_rows()
    slots = [reserved_slots(engine.kv_reservation, prompt, out, engine.max_model_len) for prompt, out in lengths]
    return pl.Series(slots, dtype=pl.Int64)
