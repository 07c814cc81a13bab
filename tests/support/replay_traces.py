"""Small traces for a replay, from rows that say only what matters."""

import polars as pl

from traces.table import Trace


def trace_of(rows):
    """What a row leaves out: no parent, 8 prompt and 3 output tokens."""
    whole = [
        {"request_id": i, "parent": None, "think_time": None, "prompt_tokens": 8, "output_tokens": 3} | row
        for i, row in enumerate(rows)
    ]
    schema = {
        "request_id": pl.Int64,
        "arrival": pl.Float64,
        "prompt_tokens": pl.Int64,
        "output_tokens": pl.Int64,
        "parent": pl.Int64,
        "think_time": pl.Float64,
    }
    return Trace(pl.DataFrame(whole, schema=schema), "test", "test", len(rows))
