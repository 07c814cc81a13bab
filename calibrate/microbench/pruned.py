"""Token-wise kernels that only a pruned model runs: queries, or keys and values, projected alone, packed, and chosen.

They are timed through all layers, each with its own weights; what is named after a token's choice (`gather`,
`similarity`, `confidence`) is timed with all of the tokens choosing.
"""

from __future__ import annotations

from typing import Any

import torch

from calibrate.kernels.linear import product
from calibrate.kernels.rotary import rotary
from calibrate.kv_codec import KvCodec
from calibrate.microbench.grid import Grid
from calibrate.microbench.timing import repeat
from calibrate.microbench.workbench import Workbench

KERNEL_CLASS = "pruned"
DEVICES = ("cpu",)  # what a GPU runs of pruning are the kernels of every model


def points(grid: Grid) -> list[dict[str, Any]]:
    return [{"tokens": n} for n in grid.tokens] if grid.pruning else []


def held_out(grid: Grid) -> list[dict[str, Any]]:
    return []


def measure(bench: Workbench, point: dict[str, Any]) -> list[tuple[dict[str, Any], list[float]]]:
    """One row a kernel; a sample is the mean over its calls in one pass."""
    tokens, layers = point["tokens"], bench.model.layers
    # The head is asked for tokens that decode, never for as many as a prompt has.
    decodes = tokens <= max(bench.grid.sequences)
    samples = repeat(lambda: one_pass(bench, tokens, decodes), bench.grid.budget)
    calls = {name: 1 if name == "confidence" else layers for name in samples}
    return [({"layer": name}, [seconds / calls[name] for seconds in found]) for name, found in samples.items()]


def one_pass(bench: Workbench, tokens: int, decodes: bool) -> dict[str, float]:
    """Seconds by kernel, summed over the layers."""
    decoder, model, lap = bench.decoder, bench.model, bench.timer.lap
    start = torch.randint(0, model.max_context - tokens + 1, ()).item()
    cos, sin = decoder.cos[start : start + tokens], decoder.sin[start : start + tokens]
    state, x = bench.random(tokens, model.hidden), bench.random(tokens, model.hidden)
    chosen = torch.randperm(tokens).sort().values
    slots = torch.arange(tokens) % len(decoder.caches[0])
    queries = model.heads * model.head_dim
    codec = KvCodec("int8", model.head_dim, bench.dtype)
    bench.timer.start()
    for index, (layer, cache) in enumerate(zip(decoder.weights.layers, decoder.caches, strict=True)):
        bench.sweep_cache(index)
        lap("")
        query = product(x, layer.qkv_proj[:queries], in_parts=False)[0].view(tokens, -1, model.head_dim)
        lap("q_proj")
        kv = product(x, layer.qkv_proj[queries:], in_parts=False)[0].view(tokens, 2, model.kv_heads, -1)
        lap("kv_proj")
        rotary(query, cos, sin)
        lap("rotary_q")
        rotary(kv[:, 0], cos, sin)
        cache.index_copy_(0, slots, kv)
        lap("rotary_kv")
        codec.pack(kv)
        lap("pack_kv")
        rows = state[chosen]
        state[chosen] = rows
        lap("gather")
        _ = torch.cosine_similarity(rows, x, dim=-1) >= 0.5
        lap("similarity")
    if decodes:
        logits = bench.random(tokens, model.vocab)
        lap("")
        first, second = logits.float().softmax(-1).topk(2).values.unbind(-1)
        _ = first - second >= 0.5
        lap("confidence")
    return bench.timer.seconds()
