"""`simctl validate replay --engine transformers`: what it refuses, and the real engine where it is installed."""

import json
from importlib.util import find_spec

import polars as pl
import pytest
from click.testing import CliRunner
from replay_traces import trace_of

from calibrate.model import ModelShape, RopeScaling
from sim.results.folder import read_run
from simctl import main
from validate import measure
from validate.measure import read_measurement
from validate.prompts import prompt_of
from validate.replay.transformers import replay

needs_transformers = pytest.mark.skipif(find_spec("transformers") is None, reason="transformers is not installed")

CONFIG = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 96,
    "max_position_embeddings": 128,
    "torch_dtype": "float32",
}
SCENARIO = """\
trace:
  synth:
    requests: 6
    arrivals: {process: constant, rate: 200}
    lengths: {prompt: {distribution: constant, value: 20}, output: {distribution: constant, value: 4}}
model: config.json
profile: datasheet:h100-sxm-80gb
engine:
  {preset: transformers-5.24, block_size: 16, kv_blocks: 32, max_num_seqs: 4, max_num_batched_tokens: 64}
seed: 3
"""
SMALL = ModelShape("small", 32, 3, 4, 2, 8, 48, 97, max_context=256, dtype_bytes=4)
SHAPES = [
    SMALL,
    ModelShape("tied", 32, 2, 4, 4, 8, 40, 97, tied_embeddings=True, max_context=256, dtype_bytes=4, rope_theta=5e5),
    ModelShape("normed", 32, 2, 4, 2, 16, 48, 97, qk_norm=True, max_context=256, dtype_bytes=4, rms_eps=1e-6),
    ModelShape(
        "stretched", 32, 2, 4, 2, 8, 48, 97, max_context=256, dtype_bytes=4, rope_scaling=RopeScaling(8.0, 1.0, 4.0, 64)
    ),
]


@pytest.fixture
def scenario(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "scenario.yaml").write_text(SCENARIO)
    return tmp_path / "scenario.yaml"


def run(scenario, *arguments, code=0):
    command = ["validate", "replay", str(scenario), "--engine", "transformers", "--threads", "1", *map(str, arguments)]
    result = CliRunner().invoke(main, [*command, "-o", str(scenario.parent / "measured")])
    if code == 0 and result.exception:
        raise result.exception
    assert result.exit_code == code, result.output
    return result.output.splitlines()[-1]


def test_without_transformers_the_command_says_what_to_install(scenario, monkeypatch):
    def missing(name):
        raise measure.PackageNotFoundError(name)

    monkeypatch.setattr("validate.measure.version", missing)
    line = run(scenario, code=2)
    assert line == "simctl: --engine transformers needs the package: pip install 'simctl[transformers]'"


def test_an_older_transformers_is_refused(scenario, monkeypatch):
    monkeypatch.setattr("validate.measure.version", lambda name: "5.9.1")
    assert run(scenario, code=2) == "simctl: transformers 5.9.1 is installed; expected 5.24 or newer"


def test_an_address_belongs_to_another_engine(scenario):
    assert "the transformers engine runs in this process" in run(scenario, "--url", "http://localhost", code=2)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("engine.scheduling_policy=priority", "engine.scheduling_policy is priority; transformers runs with fcfs"),
        ("engine.enable_chunked_prefill=false", "engine.enable_chunked_prefill is False; transformers runs with True"),
        ("engine.long_prefill_token_threshold=8", "engine.long_prefill_token_threshold is 8; transformers runs with"),
        ("engine.reserved_blocks=1", "engine.reserved_blocks is 1; transformers runs with 0"),
        ("engine.async_scheduling=true", "transformers schedules ahead on a GPU only, expected false"),
        ("fleet.replicas=2", "the scenario has 2 GPUs; transformers runs as one engine on one, expected 1"),
        ("engine.kv_blocks=1", "request 0 has 20 prompt + 4 output tokens; expected no more than fit 1 blocks of 16"),
    ],
)
def test_what_it_cannot_do_is_refused_before_it_is_started(scenario, monkeypatch, setting, said):
    known = measure.version
    monkeypatch.setattr("validate.measure.version", lambda name: "5.24" if name == "transformers" else known(name))
    line = run(scenario, "--set", setting, code=2)
    assert line.startswith("simctl: ") and said in line


@needs_transformers
def test_the_command_measures_the_real_engine(scenario):
    assert "report.html" in run(scenario)
    measured = read_run(scenario.parent / "measured")
    assert measured.requests["status"].to_list() == ["finished"] * 6
    assert measured.requests["output_tokens"].to_list() == [4] * 6
    for row in measured.requests.to_dicts():
        assert row["arrival"] <= row["first_scheduled"] < row["first_token"] < row["finish"]
    engine, lateness, failures = read_measurement(scenario.parent / "measured")
    assert engine["engine"] == "transformers" and engine["dtype"] == "float32" and engine["attention"] == "sdpa"
    assert (engine["page_size"], engine["kv_blocks"]) == (16, 32)
    assert (engine["max_batch_tokens"], engine["max_requests_per_batch"]) == (64, 4)
    assert engine["async_batching"] is False
    assert lateness.requests == 6 and not failures


@needs_transformers
def test_a_cache_beyond_the_memory_is_refused(scenario):
    line = run(scenario, "--set", "engine.kv_blocks=1000000000", code=2)
    assert line.startswith("simctl: transformers cannot make a cache of 1000000000 blocks of 16 tokens: ")


@needs_transformers
@pytest.mark.parametrize("model", SHAPES, ids=lambda model: model.name)
def test_its_weights_are_those_of_our_decoder(model, tmp_path):
    """Written by it under its own names and read back, they are what we drew, bit for bit."""
    import torch
    from safetensors.torch import save_file

    from calibrate.weights import load_weights, random_weights
    from validate.replay.transformers_manager import load

    drawn = random_weights(model, torch.device("cpu"), torch.float32, seed=5)
    theirs = load(model, device="cpu", dtype=torch.float32, seed=5, weights=None)
    assert sum(parameter.numel() for parameter in theirs.parameters()) * 4 == model.weight_bytes()
    save_file({name: tensor.contiguous() for name, tensor in theirs.named_parameters()}, tmp_path / "w.safetensors")
    read = load_weights(tmp_path / "w.safetensors", model, torch.device("cpu"), torch.float32)
    assert torch.equal(read.embedding, drawn.embedding) and torch.equal(read.lm_head, drawn.lm_head)
    for layer, other in zip(read.layers, drawn.layers, strict=True):
        for name in ("input_norm", "qkv_proj", "o_proj", "post_norm", "gate_up_proj", "down_proj"):
            assert torch.equal(getattr(layer, name), getattr(other, name)), name
    again = load(model, device="cpu", dtype=torch.float32, seed=0, weights=tmp_path / "w.safetensors")
    for name, parameter in again.named_parameters():
        assert torch.equal(parameter, theirs.get_parameter(name)), name


@needs_transformers
@pytest.mark.parametrize("model", SHAPES, ids=lambda model: model.name)
@pytest.mark.parametrize("kv_blocks", [256, 12])
def test_batched_tokens_are_those_of_an_uncached_model_and_of_our_decoder(model, kv_blocks):
    """Prompts that share a beginning, in chunks, on a pool that holds all of them or forces them to start anew."""
    import torch

    from calibrate.decoder import Decoder, SequenceInput
    from sim.engine.config import EngineConfig
    from validate.replay.transformers_manager import build, load

    config = EngineConfig(block_size=4, kv_blocks=kv_blocks, max_num_batched_tokens=16, max_num_seqs=8)
    manager = build(model, config, device="cpu", dtype=torch.float32, seed=5, weights=None).manager
    rows = [{"arrival": 0.001 * i, "prompt_tokens": 5 + i, "output_tokens": 6 + i % 3} for i in range(8)]
    trace = trace_of(rows)
    trace.requests = trace.requests.with_columns(
        prefix_ids=pl.lit([1], pl.List(pl.Int64)), prefix_block_tokens=pl.lit(4, pl.Int64)
    )
    heard = {}
    get_result = manager.get_result

    def listen(*arguments, **options):
        output = get_result(*arguments, **options)
        if output is not None and output.is_finished():
            heard[output.request_id] = list(output.generated_tokens)
        return output

    manager.get_result = listen
    recording = replay(trace, manager, vocabulary=model.vocab, seed=2)
    assert (recording.engine["restarted_requests"] > 0) == (kv_blocks == 12)
    assert recording.requests["status"].to_list() == ["finished"] * 8
    assert recording.requests["output_tokens"].to_list() == [row["output_tokens"] for row in rows]
    plain = load(model, device="cpu", dtype=torch.float32, seed=5, weights=None)
    ours = Decoder(model, kv_blocks=64, block_size=4, seed=5)
    for row in trace.requests.to_dicts():
        prompt = prompt_of(row, vocabulary=model.vocab, seed=2)
        generated = heard[str(row["request_id"])]
        known = list(prompt)
        for token in generated:
            with torch.no_grad():
                logits = plain(torch.tensor([known]), use_cache=False).logits[0, -1]
            assert logits.max() - logits[token] < 1e-4  # the likeliest, up to a tie within rounding
            known.append(token)
        (first,) = ours.step([SequenceInput(prompt, 0, list(range(8)))])
        with torch.no_grad():
            logits = plain(torch.tensor([prompt]), use_cache=False).logits[0, -1]
        assert logits.max() - logits[first] < 1e-4
