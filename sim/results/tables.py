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
    "status": pl.String(),  # finished | rejected | shed | timed_out | failed | unfinished
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

# What happened beside the steps. Columns that mean nothing to a kind are null.
EVENTS: dict[str, pl.DataType] = {
    "time": pl.Float64(),  # when it began; where a step waited for it, the start of that step's row
    "replica": pl.Int32(),
    "kind": pl.String(),  # one of `EVENT_KINDS`
    "request_id": pl.Int64(),
    # That the step, or where there is a request_id the request, waited for it. Host work and padding: that it took; of
    # an engine that schedules ahead the host's work and the device's hide each other.
    "seconds": pl.Float64(),
    "amount": pl.Int64(),
    "detail": pl.String(),
}

# Kind → what `amount` counts, and what it is.
EVENT_KINDS: dict[str, tuple[str, str]] = {
    "preempted": ("tokens", "a running request lost its blocks and waits to be admitted again"),
    "resumed": ("tokens", "it was admitted again"),
    "recomputed": ("tokens", "of a step's prefill: the request had them before it was preempted"),
    "missed": ("tokens", "of a step's prefill: the prefix cache had held them, and evicted them not long ago"),
    "copy": ("blocks", "KV blocks copied between device and host memory before a step"),
    "kv_fetch": ("blocks", "KV blocks came to the device from a tier, so long after they were asked for"),
    "kv_write": ("blocks", "KV blocks were written to host memory beside the steps, so long after they were due"),
    "kv_store": ("blocks", "KV blocks that had been written to host memory were stored on disk"),
    "graph": ("bytes", "a shape met for the first time, or again after it was dropped, was captured or compiled"),
    "launch": ("steps", "kernels were launched one by one, for want of a graph of that shape"),
    "padding": ("tokens", "rows and lengths of a step with a prefill were filled up to a shape that is built"),
    "allocator": ("bytes", "the device allocator asked the driver for memory or gave some back"),
    "drafted": ("tokens", "guessed tokens that a step verified, and seconds that drafting more took of it"),
    "accepted": ("tokens", "of them, that the model would have generated too"),
    "host": ("sessions", "work of the host beside a step's own: of every step, for each running request and session"),
    "restart": ("bytes", "out of memory: the engine was started anew"),
    "session_evicted": ("blocks", "the KV blocks kept for an idle session were given up"),
    "model_load": ("bytes", "a request waited for the weights of its model"),
    "weights_loaded": ("bytes", "a host loaded a model's weights, in so many seconds for which no step waited"),
    "weights_evicted": ("bytes", "a host dropped a model's weights"),
    "weights_sent": ("bytes", "a host sent a model's weights to another, in so many seconds of that one's load"),
    "hop": ("bytes", "a request or its answer was on the way between client and service; replica is -1"),
    "prefilled": ("tokens", "a prompt was computed here for another replica, so many seconds after it was scheduled"),
    "kv_transfer": ("bytes", "KV blocks of a computed prompt came from another replica"),
    "joined": ("tokens", "a request goes on here, so many seconds after another replica had computed its prompt"),
    "shed": ("tokens", "a request, of so many with its output, was turned away; the detail is the rule that did it"),
    "scaled": ("replicas", "an autoscaler asked for another number of replicas; replica is -1"),
    "cold_start": ("bytes", "a part of a replica's start took so many seconds"),
    "asleep": ("gpus", "an engine fell asleep instead of being given back; replica -1: it slept when the run began"),
    "slowed": ("steps", "a slow node's steps took so many seconds longer; without seconds: from now on"),
    "crashed": ("requests", "a replica crashed, with so many requests"),
    "restarted": ("replicas", "a replica was asked for in place of one that had crashed"),
    "link_degraded": ("percent", "a link has that share of its bandwidth from now on; replica is -1"),
    "retried": ("attempts", "a request was sent again, so many seconds after its last attempt; the detail is why"),
    "timed_out": ("attempts", "the client of a request gave up its attempt, so many seconds after it was sent"),
    "woken": ("gpus", "an engine that slept begins to wake as this replica"),
}

# The device's memory over time, where it is modelled: bytes, as in `sim.engine.allocator.allocator.MemoryStats`.
MEMORY: dict[str, pl.DataType] = {
    "time": pl.Float64(),
    "replica": pl.Int32(),
    "requested": pl.Int64(),
    "allocated": pl.Int64(),
    "active": pl.Int64(),
    "reserved": pl.Int64(),
    "inactive_split": pl.Int64(),
    "largest_free": pl.Int64(),
    "leaked": pl.Int64(),  # of the allocated: retained and never used again
    "graphs": pl.Int64(),  # of the allocated: held by captured graphs
}

# One row a session of a run that keeps KV blocks for idle sessions.
SESSIONS: dict[str, pl.DataType] = {
    "session": pl.String(),
    "replica": pl.Int32(),
    "turns": pl.Int32(),
    "first": pl.Float64(),  # its first turn was admitted
    "last": pl.Float64(),  # its last turn finished
    # Blocks of a prefix that sessions share count for each of them.
    "peak_blocks": pl.Int32(),  # that it held at once, busy or idle
    "idle_block_seconds": pl.Float64(),  # blocks kept while idle, times seconds
    "evictions": pl.Int32(),  # its kept blocks were given up: to make room, after `ttl`, beyond `max_sessions`, restart
    "missed_tokens": pl.Int64(),  # computed again because they had been evicted
}

# One row a replica of a simulated fleet. A replica that crashes ends; what is started in its place has another number.
REPLICAS: dict[str, pl.DataType] = {
    "replica": pl.Int32(),
    "pool": pl.String(),
    "site": pl.String(),  # null where all are in one place
    "gpus": pl.Int32(),
    "gpu_hour_price": pl.Float64(),  # of one of them
    "kv_blocks": pl.Int64(),  # of its pool; null: it has none
    "requested": pl.Float64(),  # since when its GPUs are paid for
    "ready": pl.Float64(),  # since when it takes requests; null: it never did
    "ended": pl.Float64(),  # null: it was there when the run ended
    "why": pl.String(),  # scaled down | crashed | ...; null as long as it is there
}
