"""What an engine's step takes beyond the decoder's: forming it, bookkeeping, tokens handed to their requests.

The calibration times decoder steps. Here the engine serves equal requests, all of them at once, and of its steps that
only decode the time beyond the prediction goes into the overhead, by the number of sequences.
"""

from __future__ import annotations

from dataclasses import replace
from statistics import median

import numpy as np
import polars as pl

from calibrate.decode_graphs import DecodeGraphs
from calibrate.decoder import Decoder, dtype_of
from calibrate.latency import StepLatency
from calibrate.profile import Profile
from campaign.equal_requests import blocks_for, equal_requests
from campaign.policies import ENGINE
from campaign.work import BLOCK_SIZE, Work
from sim.engine.config import EngineConfig
from validate.engine.engine import Engine

_SEQUENCES = {"cpu": [1, 4], "cuda": [1, 8, 16, 24, 32, 48, 64, 96, 128]}
_PROMPT = {"cpu": 16, "cuda": 256}
_OUTPUT = {"cpu": 8, "cuda": 40}


def beyond_the_decoder(work: Work, profile: Profile, longest: int) -> dict[int, float]:
    """Sequences → median seconds by which the engine's decode steps are longer than the profile says.

    `longest`: the context that the graphs are captured for.
    """
    counts, prompt, output = _SEQUENCES[work.device], _PROMPT[work.device], _OUTPUT[work.device]
    model, engine = profile.shape, ENGINE[work.device]
    graph_sizes = engine["cudagraph_capture_sizes"]
    blocks = blocks_for(max(counts), prompt, output)
    decoder = Decoder(model, device=work.device, dtype=dtype_of(model), kv_blocks=blocks, block_size=BLOCK_SIZE)
    DecodeGraphs(decoder, graph_sizes, max_context=longest).capture()
    times = StepLatency(profile, model, profile.tp, graph_sizes=graph_sizes, graphs_decode_only=True)
    found = {}
    for count in counts:
        config = EngineConfig(
            kv_blocks=blocks,
            block_size=BLOCK_SIZE,
            max_num_seqs=count,
            max_num_batched_tokens=engine["max_num_batched_tokens"],
        )
        steps = Engine(config, decoder, vocabulary=model.vocab).replay(equal_requests(count, prompt, output)).steps
        alone = steps.filter((pl.col("prefill_seqs") == 0) & (pl.col("decode_seqs") == count))
        found[count] = median(
            end - start - times.step([], count, kv_tokens)
            for start, end, kv_tokens in alone.select("start", "end", "kv_tokens").iter_rows()
        )
    return found


def add(profile: Profile, found: dict[int, float]) -> None:
    """Put it into a profile's overhead, linear between the numbers of sequences and constant beyond them."""
    table = profile.table("overhead")
    more = np.interp(table["sequences"].to_numpy(), list(found), list(found.values()))
    profile.tables["overhead"] = table.with_columns(pl.col("seconds", "p10", "p90") + pl.Series(more))
    note = f"{profile.provenance.note}; the overhead is that of the reference engine's steps"
    profile.provenance = replace(profile.provenance, note=note)
