"""What a change of shape costs: lengths, buckets, the layer itself, and what a call says."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from calibrate.microbench.shapes import LENGTHS, MODES, bucket, layer_of, measure_mode, token_counts, unavailable
from calibrate.model import ModelShape, load_model
from calibrate.weights import LayerWeights, random_weights

CPU = torch.device("cpu")
TINY = replace(load_model("tiny-llama"), layers=1, hidden=16, heads=4, kv_heads=2, head_dim=4, intermediate=24, vocab=8)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@given(st.integers(1, 1 << 20))
def test_a_bucket_is_the_next_power_of_two(tokens: int) -> None:
    size = bucket(tokens)
    assert size & (size - 1) == 0 and size >= tokens and (size == 1 or size // 2 < tokens)


@given(st.integers(1, 12), st.integers(64, 5000), st.integers(0, 99))
def test_lengths_are_different_and_within_bounds(calls: int, longest: int, seed: int) -> None:
    counts = token_counts(calls, longest, seed)
    assert len(set(counts)) == calls and all(1 <= count <= longest for count in counts)
    assert counts == token_counts(calls, longest, seed)


def test_more_calls_than_lengths_end_all_the_same() -> None:
    assert len(token_counts(20, 4, 0)) == 20


def naive_layer(model: ModelShape, weights: LayerWeights, x: torch.Tensor) -> torch.Tensor:
    """Token by token and head by head."""

    def norm(vector: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return vector / (vector.pow(2).mean() + model.rms_eps).sqrt() * weight

    size, group = model.head_dim, model.heads // model.kv_heads
    keys: list[torch.Tensor] = []
    values: list[torch.Tensor] = []
    rows = []
    for token in x:
        heads = (weights.qkv_proj @ norm(token, weights.input_norm)).view(-1, size)
        keys.append(heads[model.heads : model.heads + model.kv_heads])
        values.append(heads[model.heads + model.kv_heads :])
        attended = []
        for head in range(model.heads):
            scores = torch.stack([key[head // group] @ heads[head] for key in keys]) / size**0.5
            shares = scores.softmax(0)
            attended.append(sum(share * value[head // group] for share, value in zip(shares, values, strict=True)))
        token = token + weights.o_proj @ torch.cat(attended)
        gate, up = (weights.gate_up_proj @ norm(token, weights.post_norm)).chunk(2)
        rows.append(token + weights.down_proj @ (gate * torch.sigmoid(gate) * up))
    return torch.stack(rows)


@given(st.integers(1, 9), st.integers(0, 99))
def test_the_layer_is_a_llama_layer(tokens: int, seed: int) -> None:
    weights = random_weights(TINY, CPU, torch.float64, seed).layers[0]
    x = torch.randn(tokens, TINY.hidden, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(layer_of(TINY, weights)(x), naive_layer(TINY, weights, x))


@pytest.mark.parametrize("lengths", LENGTHS)
def test_calls_say_what_they_computed(lengths: str) -> None:
    weights = random_weights(TINY, CPU, torch.float32, 0).layers[0]
    computed: list[int] = []

    def layer(x: torch.Tensor) -> torch.Tensor:
        computed.append(len(x))
        return layer_of(TINY, weights)(x)

    calls = measure_mode("eager", lengths, layer, TINY, [5, 3, 5, 4, 9], weights.input_norm, tries=2)
    padded = [5, 3, 5, 4, 9] if lengths == "dynamic" else [8, 4, 8, 4, 16]
    assert [call.computed for call in calls] == padded
    assert computed == [size for size in padded for _ in range(3)]
    assert [call.tokens for call in calls] == [5, 3, 5, 4, 9] and [call.call for call in calls] == list(range(5))
    new = [True, True, False, True, True] if lengths == "dynamic" else [True, True, False, False, True]
    assert [call.is_new_shape for call in calls] == new
    assert all(call.seconds > 0 and call.first_seconds > 0 and call.allocated is None for call in calls)


def test_what_a_device_cannot_do_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    reasons = {mode: unavailable(mode, CPU) for mode in MODES}
    assert reasons["eager"] is None and reasons["graph"] == "needs cuda"
    for mode in ("compile_dynamic", "compile_static"):
        assert reasons[mode] == "needs a C++ compiler; no-such-compiler is not found"
    assert all(unavailable(mode, torch.device("cuda")) is None for mode in MODES)


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "graphs"), [("compile_dynamic", 1), ("compile_static", 3)])
def test_dynamic_shapes_are_compiled_once_and_static_ones_each(mode: str, graphs: int) -> None:
    if unavailable(mode, CPU):
        pytest.skip("no C++ compiler")
    from torch._dynamo.utils import counters

    weights = random_weights(TINY, CPU, torch.float32, 0).layers[0]
    counters.clear()
    calls = measure_mode(mode, "dynamic", layer_of(TINY, weights), TINY, [12, 7, 30], weights.input_norm, tries=1)
    assert [call.is_new_shape for call in calls] == [True] * 3
    assert counters["stats"]["unique_graphs"] == graphs
