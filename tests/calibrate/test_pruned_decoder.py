"""What a pruned decoder computes is what a textbook model with the same parts left out computes, however it is cut."""

import random
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from calibrate.decode_graphs import DecodeGraphs
from calibrate.decoder import Decoder, SequenceInput
from calibrate.kernels import backend
from calibrate.kv_codec import KvCodec
from calibrate.layer_use import layer_use
from calibrate.model import ModelShape
from calibrate.pruned_decoder import PrunedDecoder, make_decoder
from calibrate.pruning import Pruning
from ground.errors import UserError

LAYERS, BLOCK = 4, 4
LLAMA = ModelShape("small", 32, LAYERS, 4, 2, 8, 48, 97, max_context=256, dtype_bytes=4)
QWEN = replace(LLAMA, qk_norm=True, tied_embeddings=True, rms_eps=1e-6)
WHOLE = Pruning(LAYERS)

Mask = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # of query and key positions: who sees whom


def everything(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    return key <= query


def reference(
    model: ModelShape, tokens: list[int], pruning: Pruning, seed: int, sees: Mask = everything
) -> torch.Tensor:
    """Logits behind every token, [T, vocab]: textbook layers, no cache, float64."""
    weights = Decoder(model, kv_blocks=1, block_size=BLOCK, seed=seed).weights

    def norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return x / (x.pow(2).mean(-1, keepdim=True) + model.rms_eps).sqrt() * weight.double()

    half = model.head_dim // 2
    frequency = torch.tensor([model.rope_theta ** (-2 * i / model.head_dim) for i in range(half)]).double()
    positions = torch.arange(len(tokens))
    turn = torch.polar(torch.ones(len(tokens), half).double(), positions.double()[:, None] * frequency)[:, None]

    def rotate(x: torch.Tensor) -> torch.Tensor:
        turned = torch.complex(x[..., :half], x[..., half:]) * turn
        return torch.cat((turned.real, turned.imag), -1)

    x = weights.embedding[tokens].double()
    hidden = ~sees(positions[:, None], positions[None])
    kept = {}
    for index in pruning.kept:
        layer = weights.layers[index]
        qkv = norm(x, layer.input_norm) @ layer.qkv_proj.double().T
        q, k, v = qkv.view(len(tokens), -1, model.head_dim).split([model.heads, model.kv_heads, model.kv_heads], 1)
        if layer.query_norm is not None and layer.key_norm is not None:
            q, k = norm(q, layer.query_norm), norm(k, layer.key_norm)
        if pruning.kv_of[index] == index:
            kept[index] = rotate(k), v
        k, v = (one.repeat_interleave(model.heads // model.kv_heads, 1) for one in kept[pruning.kv_of[index]])
        scores = torch.einsum("qhd,khd->hqk", rotate(q), k) / model.head_dim**0.5
        attended = torch.einsum("hqk,khd->qhd", scores.masked_fill(hidden, -torch.inf).softmax(-1), v)
        x = x + attended.reshape(len(tokens), -1) @ layer.o_proj.double().T
        if index not in pruning.without_mlp:
            gate, up = (norm(x, layer.post_norm) @ layer.gate_up_proj.double().T).chunk(2, -1)
            x = x + (torch.nn.functional.silu(gate) * up) @ layer.down_proj.double().T
    return norm(x, weights.final_norm) @ weights.lm_head.double().T


def random_tokens(count: int, seed: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(97) for _ in range(count)]


def cut_logits(decoder: Decoder, tokens: list[int], blocks: list[int], rng: random.Random) -> torch.Tensor:
    """The same sequence in pieces of random length, single tokens among them."""
    rows, done = [], 0
    while done < len(tokens):
        new = 1 if rng.random() < 0.4 else rng.randint(1, len(tokens) - done)
        rows += decoder.logits([SequenceInput(tokens[done : done + new], done, blocks)])
        done += new
    return torch.cat(rows)


def window_mask(pruning: Pruning) -> Mask:
    window = pruning.window
    if window is None:
        return everything
    return lambda query, key: (key <= query) & ((key < pruning.sinks) | (key > query - window))


layer_sets = st.frozensets(st.integers(0, LAYERS - 1), max_size=LAYERS - 1)
same_for_all = st.builds(
    Pruning,
    st.just(LAYERS),
    skipped=layer_sets,
    without_mlp=layer_sets,
    group=st.integers(1, 3),
    sinks=st.sampled_from([0, 4, 8]),
    window=st.none() | st.sampled_from([4, 8, 20]),
)


@settings(max_examples=20, deadline=None)
@given(st.sampled_from([LLAMA, QWEN]), same_for_all, st.integers(1, 70), st.integers(0, 2**31))
def test_what_is_left_out_of_every_token_is_left_out_of_the_textbook(
    model: ModelShape, pruning: Pruning, length: int, seed: int
) -> None:
    tokens, rng = random_tokens(length, seed), random.Random(seed)
    decoder = make_decoder(model, pruning=pruning, kv_blocks=32, block_size=BLOCK, seed=seed % 5)
    most = pruning.most_tokens(BLOCK)
    blocks = rng.sample(range(32), 18 if most is None else min(18, most // BLOCK))
    found = cut_logits(decoder, tokens, blocks, rng)
    expected = reference(model, tokens, pruning, seed % 5, window_mask(pruning))
    assert (found - expected).abs().max() < 1e-3


@settings(max_examples=8, deadline=None)
@given(st.sampled_from([LLAMA, QWEN]), st.integers(0, 2**31), st.integers(1, 5))
def test_nothing_pruned_is_the_plain_decoder(model: ModelShape, seed: int, sequences: int) -> None:
    """Token by token and bit for bit, in steps of several sequences."""
    rng = random.Random(seed)
    plain = make_decoder(model, kv_blocks=60, block_size=BLOCK, seed=seed % 5)
    pruned = make_decoder(model, pruning=WHOLE, kv_blocks=60, block_size=BLOCK, seed=seed % 5)
    assert type(plain) is Decoder and type(pruned) is PrunedDecoder
    known = [random_tokens(rng.randint(1, 30), seed + i) for i in range(sequences)]
    blocks = [list(range(12 * i, 12 * i + 12)) for i in range(sequences)]
    batch = [SequenceInput(tokens, 0, of) for tokens, of in zip(known, blocks, strict=True)]
    for _ in range(4):
        found = plain.step(batch)
        assert pruned.step(batch) == found
        batch = [
            SequenceInput([token], len(tokens), of) for token, tokens, of in zip(found, known, blocks, strict=True)
        ]
        for token, tokens in zip(found, known, strict=True):
            tokens.append(token)
    for a, b in zip(plain.caches, pruned.caches, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("skipped", [{0}, {1, 2}, {3}, {0, 1, 3}])
def test_skipped_layers_are_a_model_without_them(skipped: set[int]) -> None:
    pruned = make_decoder(LLAMA, pruning=replace(WHOLE, skipped=frozenset(skipped)), kv_blocks=20, block_size=BLOCK)
    shallow = Decoder(replace(LLAMA, layers=LAYERS - len(skipped)), kv_blocks=20, block_size=BLOCK)
    whole = Decoder(LLAMA, kv_blocks=1, block_size=BLOCK).weights
    kept = [layer for index, layer in enumerate(whole.layers) if index not in skipped]
    shallow.weights = replace(whole, layers=kept)
    batch = [SequenceInput(random_tokens(50, 7), 0, list(range(20)))]
    assert torch.equal(pruned.logits(batch)[0], shallow.logits(batch)[0])
    assert len(pruned.caches) == len(shallow.caches)
    held = sum(one.numel() for layer in pruned.weights.layers for one in vars(layer).values() if one is not None)
    assert held == sum(one.numel() for layer in kept for one in vars(layer).values() if one is not None)


@given(
    st.builds(
        Pruning,
        st.just(LAYERS),
        skipped=layer_sets,
        without_mlp=layer_sets,
        group=st.integers(1, 3),
        kv_dtype=st.sampled_from([None, "int8", "fp8"]),
    )
)
@settings(max_examples=12, deadline=None)
def test_a_decoder_holds_the_bytes_that_the_simulator_counts(pruning: Pruning) -> None:
    decoder = make_decoder(LLAMA, pruning=pruning, kv_blocks=2, block_size=BLOCK)
    use = layer_use(pruning, BLOCK)
    assert sum(cache[0].numel() * cache.element_size() for cache in decoder.caches) == use.kv_bytes_per_token(LLAMA)
    weights = decoder.weights
    held = [weights.embedding, weights.lm_head, weights.final_norm]
    held += [one for layer in weights.layers for one in vars(layer).values() if one is not None]
    assert sum(one.numel() for one in held) * 4 == use.weight_bytes(LLAMA)


def test_layers_that_share_keep_no_cache_of_their_own() -> None:
    decoder = make_decoder(LLAMA, pruning=replace(WHOLE, group=2), kv_blocks=5, block_size=BLOCK)
    assert len(decoder.caches) == LAYERS // 2
    assert decoder.weights.layers[1].qkv_proj.shape == (32, 32)


@settings(max_examples=12, deadline=None)
@given(st.sampled_from(["int8", "fp8"]), st.none() | st.just(8), st.integers(1, 60), st.integers(0, 2**31))
def test_a_packed_cache_does_not_depend_on_how_the_work_is_cut(
    kind: str, window: int | None, length: int, seed: int
) -> None:
    pruning = replace(WHOLE, kv_dtype=kind, window=window, sinks=4)
    tokens, blocks = random_tokens(length, seed), list(range(16))
    a, b = (make_decoder(LLAMA, pruning=pruning, kv_blocks=16, block_size=BLOCK) for _ in range(2))
    whole = a.logits([SequenceInput(tokens, 0, blocks)])[0]
    in_parts = cut_logits(b, tokens, blocks, random.Random(seed))
    # A value that a sum in another order rounds the other way is off by a step, and every later token sees it.
    assert (whole - in_parts).abs().median() < 1e-2
    assert a.caches[0].dtype == torch.uint8
    assert a.caches[0].shape[-1] == {"int8": 12, "fp8": 8}[kind]


@settings(max_examples=30)
@given(st.integers(0, 2**31), st.floats(1e-6, 1e6))
def test_int8_is_off_by_half_a_step_at_most(seed: int, size: float) -> None:
    values = torch.randn(5, 2, 3, 16, generator=torch.Generator().manual_seed(seed)) * size
    codec = KvCodec("int8", 16, torch.float32)
    step = values.abs().amax(-1, keepdim=True) / 127
    assert ((codec.unpack(codec.pack(values)) - values).abs() <= 0.5001 * step).all()


def test_noughts_and_giants_survive_packing() -> None:
    for kind, largest in (("int8", 1e30), ("fp8", 448.0)):
        codec = KvCodec(kind, 8, torch.float32)
        values = torch.tensor([[0.0] * 8, [1e30, -1e30, *[0.0] * 6]])
        unpacked = codec.unpack(codec.pack(values))
        assert torch.equal(unpacked[0], values[0])
        assert unpacked[1].abs().max() == pytest.approx(largest)
    with pytest.raises(UserError, match="head_dim is 6; expected a multiple of 4"):
        KvCodec("int8", 6, torch.float32)


def test_a_packed_cache_is_near_the_plain_one() -> None:
    tokens = [SequenceInput(random_tokens(60, 3), 0, list(range(16)))]
    plain = make_decoder(LLAMA, kv_blocks=16, block_size=BLOCK).logits(tokens)[0]
    for kind, most in (("int8", 0.2), ("fp8", 1.0)):
        packed = make_decoder(LLAMA, pruning=replace(WHOLE, kv_dtype=kind), kv_blocks=16, block_size=BLOCK)
        apart = (packed.logits(tokens)[0] - plain).abs().max()
        assert 0.0 < apart < most


@pytest.mark.parametrize(
    ("pruning", "message"),
    [
        (Pruning(3), "the pruning is of 3 layers; small has 4"),
        (replace(WHOLE, window=6), "whole blocks of 4 tokens; found 6"),
        (replace(WHOLE, budget=10, recent=2), "whole blocks of 4 tokens; found 10"),
    ],
)
def test_a_pruning_that_does_not_fit_is_refused(pruning: Pruning, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_decoder(LLAMA, pruning=pruning, kv_blocks=8, block_size=BLOCK)


def test_a_gpu_takes_what_its_kernels_can(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "TRITON_DEVICES", {"cuda", "cpu"})
    for pruning in (replace(WHOLE, window=8), replace(WHOLE, group=2), replace(WHOLE, kv_dtype="fp8")):
        with pytest.raises(UserError, match="expected --device cpu for the rest"):
            make_decoder(LLAMA, pruning=pruning, kv_blocks=8, block_size=BLOCK)
    skips = make_decoder(LLAMA, pruning=replace(WHOLE, skipped=frozenset({1})), kv_blocks=8, block_size=BLOCK)
    assert isinstance(skips, PrunedDecoder) and skips.takes_graphs


def test_graphs_replay_what_is_left_of_the_layers() -> None:
    """Without a GPU the padded pass of a graph runs uncaptured."""
    pruning = replace(WHOLE, skipped=frozenset({2}), without_mlp=frozenset({0}))
    eager, padded = (make_decoder(LLAMA, pruning=pruning, kv_blocks=60, block_size=BLOCK) for _ in range(2))
    DecodeGraphs(padded, [1, 4], max_context=40).capture()
    prompts = [random_tokens(length, length) for length in (5, 17, 9)]
    blocks = [list(range(12 * i, 12 * i + 12)) for i in range(3)]
    batch = [SequenceInput(prompt, 0, of) for prompt, of in zip(prompts, blocks, strict=True)]
    tokens = eager.step(batch)
    assert padded.step(batch) == tokens
    batch = [SequenceInput([token], len(p), of) for token, p, of in zip(tokens, prompts, blocks, strict=True)]
    launched = padded.launch(batch)
    assert launched.padded_to == 4
    assert launched.tokens() == eager.step(batch)
