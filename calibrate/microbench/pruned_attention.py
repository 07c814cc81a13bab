"""Attention to what a pruned model keeps: packed keys and values, or a budget of tokens whose scores are counted.

The same batches as those of whole attention, at every second point of their grid. A budget is full: who decodes puts a
token in another's place, and a prompt behind so many tokens is cut down to as many.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch

from calibrate.heavy_hitters import HeavyHitters, KeptSpan
from calibrate.kept_kv import AllKv
from calibrate.kv_codec import KvCodec
from calibrate.microbench.grid import Grid, StepShape, spread
from calibrate.microbench.timing import repeat
from calibrate.microbench.workbench import Workbench

KERNEL_CLASS = "pruned_attention"
DEVICES = ("cpu",)

KINDS = ("int8", "fp8", "heavy_hitters")

_packed: WeakKeyDictionary[Workbench, dict[str, list[torch.Tensor]]] = WeakKeyDictionary()


def points(grid: Grid) -> list[dict[str, Any]]:
    if not grid.pruning:
        return []
    prefills = [(chunk, cached, 0, 0) for chunk in every_second(grid.chunks) for cached in grid.prefill_contexts]
    decodes = [(0, 0, n, cached) for n in every_second(grid.decodes) for cached in every_second(grid.decode_contexts)]
    keys = ("prefill_chunk", "kv_prefill", "n_decode", "kv_decode")
    return [
        {"kind": kind, **dict(zip(keys, values, strict=True))} for kind in KINDS for values in (*prefills, *decodes)
    ]


def held_out(grid: Grid) -> list[dict[str, Any]]:
    return []


def every_second(values: Sequence[int]) -> list[int]:
    """With the first and the last."""
    return sorted({*values[::2], values[-1]})


def measure(bench: Workbench, point: dict[str, Any]) -> list[tuple[dict[str, Any], list[float]]]:
    """A sample is the mean over the layers of one pass, each layer with a cache of its own."""
    attend = _budgeted(bench, point) if point["kind"] == "heavy_hitters" else _unpacking(bench, point)

    def one_pass() -> dict[str, float]:
        bench.timer.start()
        for index in range(bench.model.layers):
            bench.sweep_cache(index)
            bench.timer.lap("")
            attend(index)
            bench.timer.lap("attention")
        return bench.timer.seconds()

    samples = repeat(one_pass, bench.grid.budget)["attention"]
    return [({}, [seconds / bench.model.layers for seconds in samples])]


def _unpacking(bench: Workbench, point: dict[str, Any]) -> Callable[[int], torch.Tensor]:
    codec = KvCodec(point["kind"], bench.model.head_dim, bench.dtype)
    known = _packed.setdefault(bench, {})
    if point["kind"] not in known:
        known[point["kind"]] = [codec.pack(cache) for cache in bench.decoder.caches]
    caches = known[point["kind"]]
    if point["n_decode"]:
        shape = StepShape([], spread(point["n_decode"], point["kv_decode"]))
    else:
        shape = StepShape([(point["prefill_chunk"], point["kv_prefill"])], [])
    layout: Any = bench.decoder.layout(bench.batch(shape))
    kept = AllKv(bench.decoder.block_size, codec)
    query = bench.random(shape.tokens, bench.model.heads, bench.model.head_dim)
    return lambda layer: kept.attend(query, caches[layer], (layout.attention, layout.slots))


def _budgeted(bench: Workbench, point: dict[str, Any]) -> Callable[[int], torch.Tensor]:
    model, size = bench.model, bench.decoder.block_size
    new, sequences = (1, point["n_decode"]) if point["n_decode"] else (point["prefill_chunk"], 1)
    held = point["kv_decode"] if point["n_decode"] else point["kv_prefill"]
    shape = StepShape([], [held] * sequences) if point["n_decode"] else StepShape([(new, held)], [])
    budget = held or new
    rules = HeavyHitters(len(bench.decoder.caches[0]), model.kv_heads, budget, max(1, budget // 2), bench.device)
    spans = []
    for number, one in enumerate(bench.batch(shape)):
        slots = (torch.tensor(one.blocks)[:, None] * size + torch.arange(size)).view(-1)[:budget]
        spans.append(KeptSpan(number * new, (number + 1) * new, held, slots))
    query = bench.random(sequences * new, model.heads, model.head_dim)
    kv = bench.random(sequences * new, 2, model.kv_heads, model.head_dim)
    return lambda layer: rules.attend(query, kv, bench.decoder.caches[layer], spans)
