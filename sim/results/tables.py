"""The tables of a run. A simulated and a measured run write the same columns."""

import polars as pl

# Times are seconds on the run's clock, which starts at 0 with the trace. Null = it did not happen.
REQUESTS: dict[str, pl.DataType] = {
    "request_id": pl.Int64(),
    "replica": pl.Int32(),  # -1: never routed
    "arrival": pl.Float64(),
    "first_scheduled": pl.Float64(),
    "first_token": pl.Float64(),
    "finish": pl.Float64(),
    "prompt_tokens": pl.Int64(),
    "output_tokens": pl.Int64(),
    "cached_tokens": pl.Int64(),  # prompt tokens found in the prefix cache when first scheduled
    "preemptions": pl.Int32(),
    "ttft": pl.Float64(),  # first_token - arrival
    "tpot": pl.Float64(),  # (finish - first_token) / (output_tokens - 1); null for one token
    "e2e": pl.Float64(),  # finish - arrival
    "queue": pl.Float64(),  # first_scheduled - arrival
    "status": pl.String(),  # finished | rejected | failed | unfinished
}

# One row a run of equal steps: `steps` consecutive forward passes of the same batch (1 in a measured run).
STEPS: dict[str, pl.DataType] = {
    "replica": pl.Int32(),
    "start": pl.Float64(),
    "end": pl.Float64(),
    "steps": pl.Int32(),
    "prefill_seqs": pl.Int32(),
    "prefill_tokens": pl.Int32(),
    "decode_seqs": pl.Int32(),
    "kv_tokens": pl.Int64(),  # cached tokens read by the decoding sequences, at the first of the steps
    "running": pl.Int32(),
    "waiting": pl.Int32(),
    "kv_blocks": pl.Int32(),  # blocks held by requests at the end
    "preempted": pl.Int32(),
}
