"""Shapes against what the models' authors publish, and every way a config can be wrong."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibrate.model import ModelShape, bundled_models, load_model
from ground.errors import UserError


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("Llama-3.1-8B", 8.03e9), ("Llama-3.1-70B", 70.6e9), ("Qwen3-32B", 32.8e9), ("Qwen3-30B-A3B", 30.5e9)],
)
def test_parameter_counts_are_the_published_ones(name: str, parameters: float) -> None:
    model = load_model(name)
    assert model.weight_bytes() / model.dtype_bytes == pytest.approx(parameters, rel=2e-3)


def test_kv_bytes_per_token() -> None:
    # 2 (keys and values) x 32 layers x 8 KV heads x 128 x 2 bytes = 128 KiB, the figure in the Llama 3 papers.
    assert load_model("Llama-3.1-8B").kv_bytes_per_token() == 131072
    assert load_model("Llama-3.1-70B").kv_bytes_per_token(8) == 2 * 80 * 128 * 2


@given(st.sampled_from(bundled_models()), st.sampled_from([1, 2, 4]))
def test_shards_add_up_to_the_model(name: str, tp: int) -> None:
    model = load_model(name)
    whole = sum(linear.inputs * linear.outputs for linear in model.linears())
    shards = tp * sum(linear.inputs * linear.outputs for linear in model.linears(tp))
    router = model.hidden * model.experts * (tp - 1)  # replicated
    assert shards == whole + router
    assert model.kv_bytes_per_token(tp) * tp == model.kv_bytes_per_token()
    assert model.weight_bytes() <= model.weight_bytes(tp) * tp < model.weight_bytes() * 1.02


def test_kv_heads_are_replicated_beyond_their_number() -> None:
    model = load_model("Qwen3-30B-A3B")
    assert model.shard(8).kv_heads == 1
    assert model.kv_bytes_per_token(8) == model.kv_bytes_per_token(4)


def test_calls_follow_the_layer_order() -> None:
    calls = {call.layer: call.calls for call in load_model("Qwen3-32B").calls()}
    assert calls["layernorm"] == 128 and calls["qk_norm"] == 64 and calls["lm_head"] == 1
    assert [call.layer for call in load_model("Qwen3-30B-A3B").calls() if call.kernel_class == "moe"] == ["moe"]
    for name in bundled_models():
        model = load_model(name)
        called = {call.layer for call in model.calls()}
        assert {linear.name for linear in model.linears()} - {"router"} <= called


def test_differences_ignore_what_costs_nothing() -> None:
    tiny = load_model("tiny-llama")
    renamed = ModelShape(**{**tiny.__dict__, "name": "other", "max_context": 1})
    assert tiny.differences(renamed) == []
    assert tiny.differences(load_model("Llama-3.1-8B"))[0] == "hidden 256 and 4096"


CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 100,
    "max_position_embeddings": 256,
}


def test_config_file_and_folder(tmp_path: Path) -> None:
    folder = tmp_path / "My-Model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    model = load_model(folder)
    assert model == load_model(folder / "config.json")
    assert (model.name, model.kv_heads, model.head_dim, model.dtype_bytes) == ("My-Model", 4, 16, 2)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"hidden_size": None}, "hidden_size is None"),
        ({"hidden_size": -4}, "hidden_size is -4"),
        ({"model_type": "mamba"}, "'mamba'"),
        ({"torch_dtype": "int3"}, "'int3'"),
        ({"num_key_value_heads": 3}, "not a multiple of 3"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "'yarn'"),
        ({"rope_scaling": {"rope_type": "llama3"}}, "rope_scaling.factor"),
        ({"rope_theta": "big"}, "rope_theta is 'big'"),
    ],
)
def test_bad_configs_name_the_key(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(CONFIG | change))
    with pytest.raises(UserError) as raised:
        load_model(path)
    assert said in raised.value.message and str(path) in raised.value.message and "\n" not in raised.value.message


@pytest.mark.parametrize("text", ["{", "[1]"])
def test_not_a_config(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config\.json"):
        load_model(tmp_path)


def test_unknown_name_lists_the_bundled() -> None:
    with pytest.raises(UserError, match="tiny-llama"):
        load_model("GPT-9")


def test_indivisible_shard() -> None:
    with pytest.raises(UserError, match="tp = 3"):
        load_model("Llama-3.1-8B").shard(3)
