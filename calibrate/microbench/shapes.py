"""What a change of shape costs: a layer run eagerly, from CUDA graphs and compiled, on lengths that vary.

The layer is one of the model's, written in plain torch operators: norms, linear layers, causal attention among the new
tokens, MLP; rotary embedding and cache are left out. It is the same in every mode, and it is one that the compiler can
take as a whole. A length is either computed as it comes, or padded to the next power of two.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter

import torch
from torch.nn.functional import linear, rms_norm, scaled_dot_product_attention, silu

from calibrate.microbench.timing import whole
from calibrate.model import ModelShape
from calibrate.weights import LayerWeights

MODES = ("eager", "graph", "compile_dynamic", "compile_static")
LENGTHS = ("dynamic", "bucketed")

Layer = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Call:
    """One call of the layer on `tokens` tokens, of which it computes `computed`.

    `first_seconds` is that of the first try, with what a new shape costs (compiling, capturing); `seconds` the shortest
    of the tries after it. `allocated` and `reserved` are the bytes that the GPU allocator holds more than before the
    first call of this mode; on a CPU they are not known and null.
    """

    mode: str
    lengths: str
    call: int
    tokens: int
    computed: int
    is_new_shape: bool
    first_seconds: float
    seconds: float
    allocated: int | None
    reserved: int | None


def unavailable(mode: str, device: torch.device) -> str | None:
    """Why a mode cannot be measured on a device; None where it can."""
    if mode == "graph" and device.type == "cpu":
        return "needs cuda"
    if mode.startswith("compile") and device.type == "cpu":
        compiler = os.environ.get("CXX", "g++")
        if shutil.which(compiler) is None:
            return f"needs a C++ compiler; {compiler} is not found"
    return None


def token_counts(calls: int, longest: int, seed: int) -> list[int]:
    """So many lengths up to `longest`, all different where there are enough, and more short ones than long ones."""
    rng = random.Random(seed)
    drawn: list[int] = []
    while len(drawn) < calls:
        tokens = max(1, round(longest ** rng.uniform(0.3, 1.0)))
        if tokens not in drawn or calls > longest // 2:
            drawn.append(tokens)
    return drawn


def bucket(tokens: int) -> int:
    """The next power of two."""
    return 1 << (tokens - 1).bit_length()


def layer_of(model: ModelShape, weights: LayerWeights) -> Layer:
    """One layer without cache: [T, hidden] → [T, hidden]."""
    heads, kv_heads, size = model.heads, model.kv_heads, model.head_dim

    def forward(x: torch.Tensor) -> torch.Tensor:
        normed = rms_norm(x, (model.hidden,), weights.input_norm, model.rms_eps)
        qkv = linear(normed, weights.qkv_proj).view(-1, heads + 2 * kv_heads, size).transpose(0, 1)
        query, key, value = qkv.split([heads, kv_heads, kv_heads])
        attended = scaled_dot_product_attention(query[None], key[None], value[None], is_causal=True, enable_gqa=True)
        x = x + linear(attended[0].transpose(0, 1).reshape(-1, heads * size), weights.o_proj)
        normed = rms_norm(x, (model.hidden,), weights.post_norm, model.rms_eps)
        gate, up = linear(normed, weights.gate_up_proj).chunk(2, -1)
        return x + linear(silu(gate) * up, weights.down_proj)

    return forward


@torch.inference_mode()
def measure_mode(
    mode: str, lengths: str, layer: Layer, model: ModelShape, counts: Sequence[int], like: torch.Tensor, tries: int = 5
) -> list[Call]:
    """Call a layer on every length of `counts`, in that order; `like` gives device and dtype.

    What was compiled for another mode is forgotten first, so that every mode begins anew.
    """
    device = like.device
    if mode.startswith("compile"):
        torch.compiler.reset()
    held = _held(device)
    run = _runner(mode, layer)
    seen: set[int] = set()
    calls = []
    for number, tokens in enumerate(counts):
        computed = bucket(tokens) if lengths == "bucketed" else tokens
        x = torch.randn(computed, model.hidden, device=device, dtype=like.dtype)
        first = _seconds(run, x, device)
        seconds = min(_seconds(run, x, device) for _ in range(tries))
        del x  # it is no part of what the mode keeps
        now = _held(device)
        allocated, reserved = (None, None) if now is None or held is None else (now[0] - held[0], now[1] - held[1])
        calls.append(
            Call(mode, lengths, number, tokens, computed, computed not in seen, first, seconds, allocated, reserved)
        )
        seen.add(computed)
    return calls


def _runner(mode: str, layer: Layer) -> Layer:
    if mode == "eager":
        return layer
    if mode == "graph":
        return _Graphs(layer)
    import torch._dynamo

    # Beyond its limit torch runs a function eagerly, and says so only in a log.
    torch._dynamo.config.recompile_limit = 1 << 10
    compiled: Layer = torch.compile(layer, dynamic=mode == "compile_dynamic", fullgraph=True)
    return compiled


class _Graphs:
    """One CUDA graph a shape, captured when it is first seen; all share one memory pool."""

    def __init__(self, layer: Layer) -> None:
        self._layer = layer
        self._pool = torch.cuda.graph_pool_handle()
        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph, torch.Tensor, torch.Tensor]] = {}

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if len(x) not in self._graphs:
            self._graphs[len(x)] = self._capture(x)
        graph, given, result = self._graphs[len(x)]
        given.copy_(x)
        graph.replay()
        return result

    def _capture(self, x: torch.Tensor) -> tuple[torch.cuda.CUDAGraph, torch.Tensor, torch.Tensor]:
        given = x.clone()
        # A capture must find every library's workspace made, which a pass on a side stream does.
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            self._layer(given)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            result = self._layer(given)
        return graph, given, result


def _seconds(run: Layer, x: torch.Tensor, device: torch.device) -> float:
    """By the wall clock also on a CPU: compiling runs in threads and processes of its own."""
    if device.type == "cuda":
        return whole(lambda: run(x), device)
    begin = perf_counter()
    run(x)
    return perf_counter() - begin


def _held(device: torch.device) -> tuple[int, int] | None:
    """Bytes allocated and reserved by torch's GPU allocator."""
    if device.type == "cpu":
        return None
    torch.cuda.synchronize()
    return torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
