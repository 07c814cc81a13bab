"""Part 7: what shapes cost: modes of running a layer, captured decode graphs, scheduling ahead, recomputing."""

from __future__ import annotations

from dataclasses import asdict, replace
from itertools import product
from typing import Any

import polars as pl
import torch

from calibrate.decode_graphs import DecodeGraphs
from calibrate.decoder import Decoder, dtype_of
from calibrate.microbench.grid import CUDA_GRAPH_SIZES
from calibrate.microbench.recompute import token_costs
from calibrate.microbench.shapes import LENGTHS, MODES, layer_of, measure_mode, token_counts, unavailable
from calibrate.microbench.workbench import Workbench
from calibrate.model import ModelShape, load_model
from calibrate.weights import random_weights
from campaign.equal_requests import blocks_for, equal_requests
from campaign.profile import grid_of
from campaign.work import BLOCK_SIZE, Work, free_memory
from sim.engine.config import EngineConfig
from validate.engine.engine import Engine

_CALLS = {"cpu": 3, "cuda": 10}
_LONGEST = {"cpu": 64, "cuda": 4096}
_PROMPT = {"cpu": 8, "cuda": 512}
_TOKENS = {"cpu": [10, 50], "cuda": [10, 100, 512, 2048]}
_SERVED: dict[str, dict[str, int]] = {
    "cpu": {"requests": 4, "prompt": 16, "output": 8, "sequences": 4, "budget": 64},
    "cuda": {"requests": 64, "prompt": 256, "output": 128, "sequences": 32, "budget": 2048},
}


def run(work: Work) -> None:
    model = load_model(work.model)
    for name, measure in (("scheduling", scheduling), ("graphs", graphs), ("tokens", tokens)):
        if name not in work.found:
            work.need(8, name)
            work.found[name] = measure(work, model)
            free_memory(work.device)
    modes(work, model)


def modes(work: Work, model: ModelShape) -> None:
    """Writes `shapes.parquet`, one row a call, and says by mode and lengths how it went."""
    device = torch.device(work.device)
    # One layer and a small vocabulary: the other weights are of no use here.
    weights = random_weights(replace(model, layers=1, vocab=64), device, dtype_of(model), seed=0)
    layer = layer_of(model, weights.layers[0])
    counts = token_counts(_CALLS[work.device], _LONGEST[work.device], seed=0)
    went = work.found.setdefault("modes", {})
    path = work.out / "shapes.parquet"
    rows = pl.read_parquet(path).to_dicts() if went and path.is_file() else []
    for mode, lengths in product(MODES, LENGTHS):
        name = f"{mode}, {lengths}"
        if name in went:
            continue
        if (reason := unavailable(mode, device)) is not None:
            went[name] = reason
            continue
        work.need(8, name)
        try:
            rows += [asdict(call) for call in measure_mode(mode, lengths, layer, model, counts, weights.final_norm)]
            pl.DataFrame(rows, infer_schema_length=None).write_parquet(path)
            went[name] = "done"
        except Exception as error:  # a compiler that fails here must not take the other modes along
            went[name] = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


def graphs(work: Work, model: ModelShape) -> Any:
    """Seconds and bytes that capturing a decode step takes, by batch size."""
    if not work.on_gpu:
        return "needs cuda"
    decoder = Decoder(model, device="cuda", dtype=torch.bfloat16, kv_blocks=4096, block_size=BLOCK_SIZE)
    graphs = DecodeGraphs(decoder, CUDA_GRAPH_SIZES, max_context=grid_of(work).longest_context)
    return [asdict(captured) for captured in graphs.capture()]


def scheduling(work: Work, model: ModelShape) -> dict[str, Any]:
    """The same requests, all there at once, served synchronously and with a step scheduled while the last one runs."""
    served = _SERVED[work.device]
    trace = equal_requests(served["requests"], served["prompt"], served["output"])
    blocks = blocks_for(served["sequences"], served["prompt"], served["output"])
    decoder = Decoder(model, device=work.device, dtype=dtype_of(model), kv_blocks=blocks, block_size=BLOCK_SIZE)
    DecodeGraphs(decoder, [1, 2, served["sequences"]], max_context=served["prompt"] + served["output"]).capture()
    found: dict[str, Any] = {}
    for name, ahead in (("synchronous", False), ("asynchronous", True)):
        config = EngineConfig(
            kv_blocks=blocks,
            block_size=BLOCK_SIZE,
            max_num_seqs=served["sequences"],
            max_num_batched_tokens=served["budget"],
            async_scheduling=ahead,
        )
        recording = Engine(config, decoder, vocabulary=model.vocab).replay(trace, seed=0)
        facts = recording.engine
        duration = float(recording.requests["finish"].to_numpy().max())
        found[name] = facts | {
            "seconds": duration,
            "output_tokens_per_second": served["requests"] * served["output"] / duration,
            "gap_share": 1 - facts["forward_seconds"] / facts["step_seconds"],
        }
    return found


def tokens(work: Work, model: ModelShape) -> list[dict[str, Any]]:
    bench = Workbench(model, grid_of(work), work.device, BLOCK_SIZE, 0)
    costs = token_costs(bench, _PROMPT[work.device], _TOKENS[work.device], 0.2 if work.on_gpu else 0.01)
    return [asdict(cost) for cost in costs]
