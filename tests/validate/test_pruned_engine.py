"""The real engine on a pruned decoder: what it answers under load is what the decoder answers to each request alone."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from replay_traces import trace_of

from calibrate.decoder import Decoder, SequenceInput
from calibrate.model import ModelShape
from calibrate.pruned_decoder import PrunedDecoder, make_decoder
from ground.errors import UserError
from sim.engine.config import EngineConfig
from sim.study.scenario import make_scenario
from traces.table import Trace
from validate.engine.engine import Engine
from validate.measure import Machine, measure_reference
from validate.prompts import prompt_of

TINY = ModelShape("tiny", 32, 4, 4, 2, 8, 48, 97, dtype_bytes=4)
LENGTHS = [(30, 20), (3, 24), (50, 12), (21, 20), (9, 9), (40, 16)]
POLICIES: dict[str, dict[str, Any]] = {
    "skip_layers": {"layers": [1]},
    "skip_mlp": {"every": 2},
    "shared_kv": {"group": 2},
    "window": {"sinks": 4, "window": 8},
    "heavy_hitters": {"budget": 12},
    "quantised_kv": {"dtype": "int8"},
    "early_exit": {"layers": [1, 2], "confidence": 0.2},
    "skip_similar": {"similarity": 0.9},
}


def make_trace() -> Trace:
    return trace_of(
        [
            {"arrival": 0.001 * i, "prompt_tokens": prompt, "output_tokens": output}
            for i, (prompt, output) in enumerate(LENGTHS)
        ]
    )


def decoder_of(config: EngineConfig) -> Decoder:
    pruning = config.pruning.of(TINY) if config.pruning else None
    return make_decoder(TINY, pruning=pruning, kv_blocks=config.kv_blocks, block_size=4, seed=1)


def answered_alone(decoder: Decoder, prompt: list[int], output: int, blocks: list[int]) -> list[int]:
    tokens = decoder.step([SequenceInput(prompt, 0, blocks)])
    while len(tokens) < output:
        tokens += decoder.step([SequenceInput(tokens[-1:], len(prompt) + len(tokens) - 1, blocks)])
    return tokens


@pytest.mark.parametrize("policy", POLICIES)
def test_under_load_each_gets_what_it_gets_alone(policy: str) -> None:
    """In a pool in which not all fit; prompts whole, since what a budget keeps depends on how they are cut."""
    torch.set_num_threads(1)
    whole = policy == "heavy_hitters"
    blocks = 12 if policy in ("window", "heavy_hitters") else 30
    config = EngineConfig(
        kv_blocks=blocks,
        block_size=4,
        max_num_seqs=4,
        max_num_batched_tokens=80 if whole else 24,
        enable_chunked_prefill=not whole,
        pruning={policy: POLICIES[policy]},
    )
    decoder, trace = decoder_of(config), make_trace()
    assert isinstance(decoder, PrunedDecoder)
    engine = Engine(config, decoder, vocabulary=97, warm_up=False)
    recording = engine.replay(trace, seed=5)
    assert recording.steps["kv_blocks"].max() <= blocks
    if policy not in ("window", "heavy_hitters"):
        assert recording.requests["preemptions"].sum() > 0, "the pool is too small for all of them"
    alone = decoder_of(config.model_copy(update={"kv_blocks": 40}))
    for row in trace.requests.to_dicts():
        prompt = prompt_of(row, vocabulary=97, seed=5)
        expected = answered_alone(alone, prompt, row["output_tokens"], list(range(20)))
        if recording.requests["preemptions"][row["request_id"]] and policy in ("early_exit", "heavy_hitters"):
            continue  # its answer so far was then a prompt, of which the rule does not hold token by token
        assert engine.outputs[row["request_id"]] == expected


def test_sinks_are_shared_and_never_written_over() -> None:
    """All begin with the same 8 tokens, the sinks: who comes later finds them, however far the others' windows went."""
    torch.set_num_threads(1)
    config = EngineConfig(kv_blocks=20, block_size=4, max_num_seqs=3, pruning={"window": {"sinks": 8, "window": 8}})
    trace = trace_of(
        [
            {"arrival": 0.0, "prompt_tokens": prompt, "output_tokens": output, "prefix_block_tokens": 4}
            for prompt, output in LENGTHS[:1] + LENGTHS[2:]
        ]
    )
    ids = [
        [1, 2, *range(1000 * (i + 1), 1000 * (i + 1) + prompt // 4 - 2)]
        for i, prompt in enumerate(trace.requests["prompt_tokens"])
    ]
    trace.requests = trace.requests.with_columns(
        prefix_ids=pl.Series(ids), prefix_block_tokens=pl.lit(4, pl.Int64), priority=pl.lit(0, pl.Int64)
    )
    engine = Engine(config, decoder_of(config), vocabulary=97, warm_up=False)
    recording = engine.replay(trace, seed=5)
    assert recording.requests["cached_tokens"].to_list()[-1] == 8
    alone = decoder_of(config)
    for row in trace.requests.to_dicts():
        expected = answered_alone(alone, prompt_of(row, vocabulary=97, seed=5), row["output_tokens"], list(range(20)))
        assert engine.outputs[row["request_id"]] == expected


def test_a_pruned_run_is_measured_and_written(tmp_path: Path) -> None:
    scenario = {
        "model": "tiny-llama",
        "profile": "datasheet:h100-sxm-80gb",
        "trace": {
            "synth": {
                "requests": 3,
                "arrivals": {"process": "constant", "rate": 100.0},
                "lengths": {
                    "prompt": {"distribution": "constant", "value": 40},
                    "output": {"distribution": "constant", "value": 4},
                },
            }
        },
        "engine": {
            "kv_blocks": 60,
            "preset": "reference",
            "pruning": {"window": {"sinks": 16, "window": 16}, "skip_mlp": {"every": 2}},
        },
    }
    measure_reference(make_scenario(scenario, {}, tmp_path, "made"), Machine(), tmp_path / "run")
    requests = pl.read_parquet(tmp_path / "run" / "requests.parquet")
    assert requests["status"].to_list() == ["finished"] * 3
    assert pl.read_parquet(tmp_path / "run" / "steps.parquet")["kv_blocks"].max() <= 3 * 3

    graphs = make_scenario(scenario, {"engine.cudagraph_capture_sizes": [1, 2]}, tmp_path, "made")
    with pytest.raises(
        UserError, match=r"captured graphs do not know it; expected engine.cudagraph_capture_sizes \[\]"
    ):
        measure_reference(graphs, Machine(), tmp_path / "other")
