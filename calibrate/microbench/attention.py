"""Paged attention: one prefill behind a cached prefix, or a batch of decodes.

Decoding contexts are spread by a quarter of their mean to either side, so that the table holds the padding that a
serving batch meets. The KV write is no part of it: it goes with the rotary embedding, with which it is one kernel.
"""

from __future__ import annotations

from typing import Any

from calibrate.microbench.grid import Grid, StepShape, spread
from calibrate.microbench.timing import repeat
from calibrate.microbench.workbench import Workbench

KERNEL_CLASS = "attention"
DEVICES = ("cpu", "cuda")


def points(grid: Grid) -> list[dict[str, Any]]:
    prefills = [_prefill(chunk, cached) for chunk in grid.chunks for cached in grid.prefill_contexts]
    return prefills + [_decode(n, cached) for n in grid.decodes for cached in grid.decode_contexts]


def held_out(grid: Grid) -> list[dict[str, Any]]:
    prefills = [_prefill(chunk, cached) for chunk, cached in grid.held_out_prefills]
    return prefills + [_decode(n, cached) for n, cached in grid.held_out_decodes]


def measure(bench: Workbench, point: dict[str, Any]) -> list[tuple[dict[str, Any], list[float]]]:
    """A sample is the mean over the layers of one pass, each layer with a cache of its own."""
    if point["n_decode"]:
        shape = StepShape([], spread(point["n_decode"], point["kv_decode"]))
    else:
        shape = StepShape([(point["prefill_chunk"], point["kv_prefill"])], [])
    decoder, model = bench.decoder, bench.model
    layout = decoder.layout(bench.batch(shape))

    def one_pass() -> dict[str, float]:
        query = bench.random(shape.tokens, model.heads, model.head_dim)
        bench.timer.start()
        for index, cache in enumerate(decoder.caches):
            bench.sweep_cache(index)
            bench.timer.lap("")
            decoder.attention(query, cache, layout)
            bench.timer.lap("attention")
        return bench.timer.seconds()

    samples = repeat(one_pass, bench.grid.budget)["attention"]
    return [({}, [seconds / model.layers for seconds in samples])]


def _prefill(chunk: int, cached: int) -> dict[str, Any]:
    return {"prefill_chunk": chunk, "kv_prefill": cached, "n_decode": 0, "kv_decode": 0}


def _decode(sequences: int, cached: int) -> dict[str, Any]:
    return {"prefill_chunk": 0, "kv_prefill": 0, "n_decode": sequences, "kv_decode": cached}
