"""Serve some requests, all at once, and record the allocator: `python -m campaign.serve_recorded KIND FOLDER DEVICE`.

On a CPU the requests are served and nothing is recorded.
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import torch

from calibrate.decode_graphs import DecodeGraphs
from calibrate.decoder import Decoder, dtype_of
from calibrate.microbench.shapes import bucket
from calibrate.model import load_model
from campaign.machine import facts
from campaign.recordings import KINDS
from campaign.work import BLOCK_SIZE, MODELS
from sim.engine.config import EngineConfig
from traces.synth import SynthSpec, generate
from traces.table import Trace
from validate.engine.engine import Engine

_REQUESTS = {"cuda": 10, "cpu": 4}
_LENGTHS: dict[str, dict[str, dict[str, Any]]] = {
    "cuda": {
        "prompt": {"distribution": "lognormal", "median": 500, "sigma": 0.8, "low": 16, "high": 4000},
        "output": {"distribution": "lognormal", "median": 16, "sigma": 0.6, "low": 4, "high": 40},
    },
    "cpu": {
        "prompt": {"distribution": "uniform", "low": 4, "high": 60},
        "output": {"distribution": "uniform", "low": 2, "high": 6},
    },
}
_ENGINE: dict[str, dict[str, Any]] = {
    "cuda": {"kv_blocks": 4096, "max_num_batched_tokens": 2048, "max_num_seqs": 16},
    "cpu": {"kv_blocks": 64, "max_num_batched_tokens": 64, "max_num_seqs": 4},
}
_GRAPH_SIZES = [1, 2, 4, 8, 16]
_SEED = 0


def trace_of(device: str, *, bucketed: bool) -> Trace:
    """Requests that all arrive at once; in buckets, prompts and outputs are rounded up to powers of two."""
    spec = {
        "requests": _REQUESTS[device],
        "arrivals": {"process": "constant", "rate": 1e6},
        "lengths": _LENGTHS[device],
    }
    trace = generate(SynthSpec.model_validate(spec), _SEED)
    if bucketed:
        rounded = pl.col("prompt_tokens", "output_tokens").map_elements(bucket, return_dtype=pl.Int64)
        trace.requests = trace.requests.with_columns(rounded)
    return trace


def serve(device: str, trace: Trace, *, graphs: bool) -> int:
    """Build the engine, with decode graphs or without, and serve the trace; returns the number of steps."""
    model = load_model(MODELS[device])
    config = EngineConfig(block_size=BLOCK_SIZE, **_ENGINE[device])
    decoder = Decoder(
        model,
        device=device,
        dtype=dtype_of(model),
        kv_blocks=config.kv_blocks,
        block_size=BLOCK_SIZE,
        seed=_SEED,
    )
    if graphs:
        longest = int((trace.requests["prompt_tokens"] + trace.requests["output_tokens"]).to_numpy().max())
        DecodeGraphs(decoder, _GRAPH_SIZES, max_context=longest).capture()
    recording = Engine(config, decoder, vocabulary=model.vocab).replay(trace, seed=_SEED)
    return int(recording.engine["steps"])


def main(kind: str, folder: Path, device: str) -> None:
    what = KINDS[kind]
    trace = trace_of(device, bucketed=what.bucketed)
    if device == "cpu":
        torch.set_num_threads(1)
        serve(device, trace, graphs=what.graphs)
        return
    from validate.allocator.record import record

    torch.cuda.init()
    about: dict[str, Any] = {
        "kind": kind,
        **asdict(what),
        "model": MODELS[device],
        "engine": _ENGINE[device],
        "requests": trace.requests.select("prompt_tokens", "output_tokens").rows(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": facts(device),
    }
    recording = record(lambda: about.update(steps=serve(device, trace, graphs=what.graphs)), about)
    recording.save(folder / kind, force=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
