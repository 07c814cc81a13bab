"""Token-wise kernels: every linear layer, norm, activation, the token embedding, rotary embedding with the KV write.

They are timed in the order in which the model runs them, through all of its layers: each meets weights that the
processor's cache does not hold, and the output of its predecessor, which it does.
"""

from __future__ import annotations

from typing import Any

import torch

from calibrate.kernels.embedding import embedding
from calibrate.kernels.linear import gate_up_product, product
from calibrate.kernels.rmsnorm import add_rmsnorm
from calibrate.kernels.rotary_write import rotary_write
from calibrate.kernels.silu_mul import silu_mul
from calibrate.microbench.grid import Grid
from calibrate.microbench.timing import repeat
from calibrate.microbench.workbench import Workbench

KERNEL_CLASS = "dense"
DEVICES = ("cpu", "cuda")


def points(grid: Grid) -> list[dict[str, Any]]:
    return [{"tokens": n} for n in grid.tokens]


def held_out(grid: Grid) -> list[dict[str, Any]]:
    return [{"tokens": n} for n in grid.held_out_tokens]


def measure(bench: Workbench, point: dict[str, Any]) -> list[tuple[dict[str, Any], list[float]]]:
    """One row a layer name; a sample is the mean over that layer's calls in one pass through the model."""
    calls = {call.layer: call.calls for call in bench.model.calls()}
    samples = repeat(lambda: one_pass(bench, point["tokens"]), bench.grid.budget)
    return [({"layer": name}, [seconds / calls[name] for seconds in samples[name]]) for name in samples]


def one_pass(bench: Workbench, tokens: int) -> dict[str, float]:
    """The decoder's forward pass on random activations, its attention left out: seconds by layer name.

    A layer that the decoder does in one kernel with its predecessor takes what two marks in a row take.
    """
    decoder, model, lap = bench.decoder, bench.model, bench.timer.lap
    eps = model.rms_eps
    ids = torch.randint(0, model.vocab, (tokens,), device=bench.device)
    start = torch.randint(0, model.max_context - tokens + 1, ()).item()
    cos, sin = decoder.cos[start : start + tokens], decoder.sin[start : start + tokens]
    attended = bench.random(tokens, model.heads * model.head_dim)
    slots = torch.arange(tokens, device=bench.device) % len(decoder.caches[0])

    bench.timer.start()
    residual = embedding(ids, decoder.weights.embedding)
    lap("embedding")
    parts = torch.zeros_like(residual)[None]
    lap("")
    for layer, cache in zip(decoder.weights.layers, decoder.caches, strict=True):
        x = add_rmsnorm(parts, residual, layer.input_norm, eps)
        lap("layernorm")
        normed = layer.query_norm is not None and layer.key_norm is not None
        parts = product(x, layer.qkv_proj, in_parts=not normed)
        qkv = parts.view(*parts.shape[:2], -1, model.head_dim)
        lap("qkv_proj")
        if layer.query_norm is not None and layer.key_norm is not None:
            decoder.qk_norm(qkv[0], layer.query_norm, layer.key_norm)
            lap("qk_norm")
        rotary_write(qkv, cos, sin, cache, slots)
        lap("rotary_emb")
        parts = product(attended, layer.o_proj)
        lap("o_proj")
        x = add_rmsnorm(parts, residual, layer.post_norm, eps)
        lap("layernorm")
        x, activated = gate_up_product(x, layer.gate_up_proj)
        lap("gate_up_proj")
        if not activated:
            x = silu_mul(x)
        lap("act_fn")
        parts = product(x, layer.down_proj)
        lap("down_proj")
    add_rmsnorm(parts, residual, decoder.weights.final_norm, eps)
    lap("final_layernorm")
    return bench.timer.seconds()
