"""Greedy tokens equal those of a plain model without a cache, however the work is cut into steps."""

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from calibrate.decoder import Decoder, Launched, SequenceInput
from calibrate.model import ModelShape, RopeScaling, load_model
from ground.errors import UserError

LLAMA = ModelShape("small", 32, 3, 4, 2, 8, 48, 97, max_context=256, dtype_bytes=4)
QWEN = replace(LLAMA, qk_norm=True, tied_embeddings=True, rms_eps=1e-6)
STRETCHED = replace(LLAMA, rope_scaling=RopeScaling(8.0, 1.0, 4.0, 64))
BLOCK = 4


def reference_logits(decoder: Decoder, tokens: list[int]) -> torch.Tensor:
    """Logits of the last token: textbook decoder, no cache, one sequence, complex rotation, float64."""
    model, weights = decoder.model, decoder.weights

    def norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return x / (x.pow(2).mean(-1, keepdim=True) + model.rms_eps).sqrt() * weight.double()

    half = model.head_dim // 2
    frequency = [model.rope_theta ** (-2 * i / model.head_dim) for i in range(half)]
    if model.rope_scaling is not None:
        scaling, scaled = model.rope_scaling, []
        for f in frequency:
            turns = scaling.original_max_position * f / (2 * torch.pi)
            mix = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
            mix = min(1.0, max(0.0, mix))
            scaled.append(mix * f + (1 - mix) * f / scaling.factor)
        frequency = scaled
    angle = torch.arange(len(tokens)).double()[:, None] * torch.tensor(frequency).double()
    turn = torch.polar(torch.ones_like(angle), angle)[:, None]

    def rotate(x: torch.Tensor) -> torch.Tensor:
        turned = torch.complex(x[..., :half], x[..., half:]) * turn
        return torch.cat((turned.real, turned.imag), -1)

    x = weights.embedding[tokens].double()
    causal = torch.full((len(tokens), len(tokens)), -torch.inf).double().triu(1)
    for layer in weights.layers:
        qkv = norm(x, layer.input_norm) @ layer.qkv_proj.double().T
        q, k, v = qkv.view(len(tokens), -1, model.head_dim).split([model.heads, model.kv_heads, model.kv_heads], 1)
        if layer.query_norm is not None and layer.key_norm is not None:
            q, k = norm(q, layer.query_norm), norm(k, layer.key_norm)
        group = model.heads // model.kv_heads
        k, v = rotate(k).repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        scores = torch.einsum("qhd,khd->hqk", rotate(q), k) / model.head_dim**0.5 + causal
        attended = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v).reshape(len(tokens), -1)
        x = x + attended @ layer.o_proj.double().T
        gate, up = (norm(x, layer.post_norm) @ layer.gate_up_proj.double().T).chunk(2, -1)
        x = x + (torch.nn.functional.silu(gate) * up) @ layer.down_proj.double().T
    return norm(x[-1], weights.final_norm) @ weights.lm_head.double().T


def assert_likeliest(decoder: Decoder, tokens: list[int], chosen: int) -> None:
    """`chosen` is the reference's greedy token, up to a tie within float32's rounding."""
    logits = reference_logits(decoder, tokens)
    assert logits.max() - logits[chosen] < 1e-4


@settings(max_examples=25, deadline=None)
@given(st.sampled_from([LLAMA, QWEN, STRETCHED]), st.integers(0, 2**32 - 1), st.integers(1, 6))
def test_any_cut_into_steps_gives_the_reference_tokens(model: ModelShape, seed: int, sequences: int) -> None:
    """Random prompts in random chunks, prefill and decode mixed in a step, blocks scattered over the pool."""
    rng = random.Random(seed)
    decoder = Decoder(model, kv_blocks=6 * 16, block_size=BLOCK, seed=seed % 7)
    pool = list(range(6 * 16))
    rng.shuffle(pool)
    prompts = [[rng.randrange(model.vocab) for _ in range(rng.randint(1, 40))] for _ in range(sequences)]
    blocks = [[pool.pop() for _ in range(12)] for _ in prompts]
    known = [list(prompt) for prompt in prompts]
    cached = [0] * sequences
    while any(len(k) - len(p) < 3 for k, p in zip(known, prompts, strict=True)):
        chosen = [i for i in range(sequences) if rng.random() < 0.7 and len(known[i]) - len(prompts[i]) < 3]
        if not chosen:
            continue
        chunks = {i: rng.randint(1, len(known[i]) - cached[i]) for i in chosen}
        batch = [SequenceInput(known[i][cached[i] : cached[i] + chunks[i]], cached[i], blocks[i]) for i in chosen]
        for i, token in zip(chosen, decoder.step(batch), strict=True):
            cached[i] += chunks[i]
            if cached[i] == len(known[i]):
                assert_likeliest(decoder, known[i], token)
                known[i].append(token)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.booleans())
def test_tokens_the_host_has_not_seen_are_taken_on_the_device(seed: int, sequences: int, patient: bool) -> None:
    """Sequences come and go and change their rows; the host is told no token before the end, or each of them late."""
    rng = random.Random(seed)
    decoder, told = (Decoder(LLAMA, kv_blocks=6 * 16, block_size=BLOCK, seed=seed % 7) for _ in range(2))
    blocks = [list(range(16 * i, 16 * i + 16)) for i in range(sequences)]
    prompts = [[rng.randrange(97) for _ in range(rng.randint(1, 30))] for _ in range(sequences)]
    known = [list(prompt) for prompt in prompts]
    cached = [0] * sequences
    launched: list[tuple[list[int], Launched]] = []
    rows: dict[int, int] = {}  # where each sequence stood in the batch before
    for _ in range(12):
        now = [i for i in range(sequences) if i in rows or (cached[i] == 0 and rng.random() < 0.5)]
        rng.shuffle(now)
        now = now[: rng.randint(1, sequences)]
        if not now:
            continue
        batch = []
        for i in now:
            tokens, row = (prompts[i], None) if cached[i] == 0 else ([0], rows[i])
            batch.append(SequenceInput(tokens, cached[i], blocks[i], previous=row))
            cached[i] += len(tokens)
        step = decoder.launch(batch)
        assert not step.graph and step.padded_to is None
        launched.append((now, step))
        if patient:
            step.tokens()
        rows = {i: row for row, i in enumerate(now)}
    for now, step in launched:
        tokens = step.tokens()
        whole = [SequenceInput(known[i], 0, blocks[i]) for i in now]
        assert told.step(whole) == tokens
        for i, token in zip(now, tokens, strict=True):
            assert_likeliest(decoder, known[i], token)
            known[i].append(token)


def test_a_previous_row_that_is_none_is_refused() -> None:
    decoder = Decoder(LLAMA, kv_blocks=8, block_size=BLOCK)
    with pytest.raises(ValueError, match="previous = 0 for 1 tokens; expected"):
        decoder.launch([SequenceInput([0], 3, [1], previous=0)])
    decoder.step([SequenceInput([1, 2, 3], 0, [1])])
    for tokens, previous in (([0], 1), ([0], -1), ([0, 0], 0)):
        with pytest.raises(ValueError, match=f"previous = {previous} "):
            decoder.launch([SequenceInput(tokens, 3, [1, 2], previous=previous)])
    assert decoder.launch([SequenceInput([0], 3, [1], previous=0)]).tokens()


def test_a_step_of_too_many_sequences_is_refused() -> None:
    decoder = Decoder(LLAMA, kv_blocks=1, block_size=BLOCK)
    with pytest.raises(UserError, match="a step of 16385 sequences; expected at most 16384"):
        decoder.step([SequenceInput([1], 0, [0])] * 16385)


def test_sequences_share_the_blocks_of_their_prefix() -> None:
    decoder = Decoder(LLAMA, kv_blocks=32, block_size=BLOCK)
    prefix = [5, 9, 2, 7, 1, 1, 8, 3]
    decoder.step([SequenceInput(prefix, 0, [20, 3])])
    tails = ([11, 4, 6], [50], [60, 61, 62, 63, 64])
    batch = [SequenceInput(tail, 8, [20, 3, 10 + i, 13 + i]) for i, tail in enumerate(tails)]
    for tail, token in zip(tails, decoder.step(batch), strict=True):
        assert_likeliest(decoder, prefix + list(tail), token)


def test_large_decode_batches_are_cut_into_tiles() -> None:
    decoder = Decoder(LLAMA, kv_blocks=300, block_size=BLOCK)
    decoder._tile_tokens = 64
    rng = random.Random(1)
    prompts = [[rng.randrange(97) for _ in range(length)] for length in (1, 70, 3, 40, 33, 5, 5, 64)]
    blocks = [list(range(30 * i, 30 * i + 30)) for i in range(len(prompts))]
    decoder.step([SequenceInput(p[:-1], 0, b) for p, b in zip(prompts, blocks, strict=True) if len(p) > 1])
    batch = [SequenceInput(p[-1:], len(p) - 1, b) for p, b in zip(prompts, blocks, strict=True)]
    assert len(decoder.layout(batch).attention.tiles) > 2
    for prompt, token in zip(prompts, decoder.step(batch), strict=True):
        assert_likeliest(decoder, prompt, token)


def test_weights_of_a_checkpoint(tmp_path: Path) -> None:
    drawn = Decoder(LLAMA, kv_blocks=8, seed=3)
    tensors = {"model.embed_tokens.weight": drawn.weights.embedding, "lm_head.weight": drawn.weights.lm_head}
    tensors["model.norm.weight"] = drawn.weights.final_norm
    for i, layer in enumerate(drawn.weights.layers):
        name = f"model.layers.{i}"
        q, k, v = layer.qkv_proj.split([32, 16, 16])
        gate, up = layer.gate_up_proj.chunk(2)
        tensors |= {f"{name}.self_attn.{p}_proj.weight": t for p, t in (("q", q), ("k", k), ("v", v))}
        tensors |= {f"{name}.mlp.{p}_proj.weight": t for p, t in (("gate", gate), ("up", up))}
        tensors[f"{name}.self_attn.o_proj.weight"] = layer.o_proj
        tensors[f"{name}.mlp.down_proj.weight"] = layer.down_proj
        tensors[f"{name}.input_layernorm.weight"] = layer.input_norm
        tensors[f"{name}.post_attention_layernorm.weight"] = layer.post_norm
    file = tmp_path / "model.safetensors"
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, file)
    for path in (file, tmp_path):
        loaded = Decoder(LLAMA, kv_blocks=8, seed=99, weights=path)
        batch = [SequenceInput([1, 2, 3, 4], 0, [5])]
        assert loaded.step(batch) == drawn.step(batch)

    with pytest.raises(UserError, match=r"embed_tokens.weight is \[97, 32\]; expected \[98, 32\]"):
        Decoder(replace(LLAMA, vocab=98), kv_blocks=8, weights=file)
    with pytest.raises(UserError, match=r"layers\.3\..* is missing"):
        Decoder(replace(LLAMA, layers=4), kv_blocks=8, weights=file)
    (tmp_path / "broken.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError, match="not a readable safetensors"):
        Decoder(LLAMA, kv_blocks=8, weights=tmp_path / "broken.safetensors")
    with pytest.raises(UserError, match="no safetensors file"):
        Decoder(LLAMA, kv_blocks=8, weights=tmp_path / "absent")


def test_mixture_of_experts_is_refused() -> None:
    with pytest.raises(UserError, match="mixture of experts"):
        Decoder(load_model("Qwen3-30B-A3B"), kv_blocks=1)
