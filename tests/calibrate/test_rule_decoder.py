"""Tokens that leave early or pass by an MLP: against models that leave the same out of every token."""

import random
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from calibrate.decoder import SequenceInput
from calibrate.model import ModelShape
from calibrate.pruned_decoder import PrunedDecoder, make_decoder
from calibrate.pruning import Pruning

LAYERS, BLOCK = 5, 4
SMALL = ModelShape("small", 32, LAYERS, 4, 2, 8, 48, 97, max_context=256, dtype_bytes=4)
WHOLE = Pruning(LAYERS)
TOKENS = [random.Random(4).randrange(97) for _ in range(60)]
BLOCKS = list(range(20))


def decoder_of(pruning: Pruning) -> PrunedDecoder:
    decoder = make_decoder(SMALL, pruning=pruning, kv_blocks=20, block_size=BLOCK, seed=2)
    assert isinstance(decoder, PrunedDecoder)
    return decoder


def logits(pruning: Pruning) -> torch.Tensor:
    return decoder_of(pruning).logits([SequenceInput(TOKENS, 0, BLOCKS)])[0]


@pytest.mark.parametrize(
    "never", [replace(WHOLE, exits=(1, 3), confidence=1.01), replace(WHOLE, similarity=1.01, first=1)]
)
def test_a_rule_that_never_holds_prunes_nothing(never: Pruning) -> None:
    assert torch.allclose(logits(never), logits(WHOLE), atol=1e-5)


@pytest.mark.parametrize("exit_layer", [0, 2, 3])
def test_where_all_leave_at_once_the_layers_behind_are_not_there(exit_layer: int) -> None:
    behind = frozenset(range(exit_layer + 1, LAYERS))
    found = decoder_of(replace(WHOLE, exits=(exit_layer,), confidence=0.0))
    out = found.logits([SequenceInput(TOKENS, 0, BLOCKS)])[0]
    assert torch.allclose(out, logits(replace(WHOLE, skipped=behind)), atol=1e-5)
    assert found.ran.tokens == len(TOKENS)
    assert found.ran.attention == [len(TOKENS)] * (exit_layer + 1) + [0] * len(behind)


def test_where_nothing_is_unlike_every_second_mlp_is_passed_by() -> None:
    found = decoder_of(replace(WHOLE, similarity=-1.0, first=1))
    out = found.logits([SequenceInput(TOKENS, 0, BLOCKS)])[0]
    assert torch.allclose(out, logits(replace(WHOLE, without_mlp=frozenset({1, 3}))), atol=1e-5)
    assert found.ran.mlp == [60, 0, 60, 0, 60]


rules = st.builds(Pruning, st.just(LAYERS), exits=st.just((1, 2)), confidence=st.floats(0.0, 0.6)) | st.builds(
    Pruning, st.just(LAYERS), similarity=st.floats(0.5, 1.0), first=st.integers(1, 3), group=st.integers(1, 2)
)


@settings(max_examples=15, deadline=None)
@given(rules, st.integers(0, 2**31), st.none() | st.just("int8"))
def test_what_a_token_runs_does_not_depend_on_how_the_work_is_cut(
    pruning: Pruning, seed: int, kind: str | None
) -> None:
    pruning, rng = replace(pruning, kv_dtype=kind), random.Random(seed)
    whole, cut = decoder_of(pruning), decoder_of(pruning)
    expected = whole.logits([SequenceInput(TOKENS, 0, BLOCKS)])[0]
    rows, done = [], 0
    while done < len(TOKENS):
        new = rng.randint(1, 12)
        rows += cut.logits([SequenceInput(TOKENS[done : done + new], done, BLOCKS)])
        done += new
    # Two sums of other order may fall on either side of the rule for one token, which the later ones see.
    assert (torch.cat(rows) - expected).abs().median() < 1e-2
    assert whole.ran.tokens == cut.ran.tokens == len(TOKENS)
    for counts in (whole.ran.attention, whole.ran.mlp):
        assert all(0 <= count <= len(TOKENS) for count in counts)
    if pruning.exits:
        assert whole.ran.attention == sorted(whole.ran.attention, reverse=True)


def test_prompts_run_whole_and_decodes_may_leave() -> None:
    plain, leaving = decoder_of(WHOLE), decoder_of(replace(WHOLE, exits=(0,), confidence=0.0))
    prompt = [SequenceInput(TOKENS, 0, BLOCKS)]
    (token,) = plain.step(prompt)
    assert leaving.step(prompt) == [token]
    assert leaving.ran.tokens == 0
    leaving.step([SequenceInput([token], len(TOKENS), BLOCKS)])
    assert leaving.ran.tokens == 1
    assert leaving.ran.mlp == [1, 0, 0, 0, 0]


def test_prompts_and_decodes_in_one_step_are_what_each_is_alone() -> None:
    pruning = replace(WHOLE, exits=(1, 2), confidence=0.2)
    together, alone = decoder_of(pruning), decoder_of(pruning)
    prompts = [TOKENS[:9], TOKENS[9:22], TOKENS[22:40]]
    blocks = [BLOCKS[5 * i : 5 * i + 5] for i in range(3)]
    first = [SequenceInput(prompt, 0, of) for prompt, of in zip(prompts[:2], blocks[:2], strict=True)]
    tokens = together.step(first)
    assert [alone.step([one])[0] for one in first] == tokens
    decodes = [
        SequenceInput([token], len(prompt), of) for token, prompt, of in zip(tokens, prompts, blocks, strict=False)
    ]
    mixed = [*decodes, SequenceInput(prompts[2], 0, blocks[2])]
    assert together.step(mixed) == [alone.step([one])[0] for one in mixed]
    assert together.ran.attention == alone.ran.attention


def test_who_left_gave_its_state_to_the_layers_behind() -> None:
    """Keys of a layer behind the exit are those of the state with which the tokens left."""
    decoder = decoder_of(replace(WHOLE, exits=(0,), confidence=0.0))
    decoder.logits([SequenceInput(TOKENS[:8], 0, BLOCKS)])
    shallow = make_decoder(
        SMALL, pruning=replace(WHOLE, skipped=frozenset({2, 3})), kv_blocks=20, block_size=BLOCK, seed=2
    )
    layers = shallow.weights.layers
    layers[1] = replace(layers[1], o_proj=layers[1].o_proj * 0, down_proj=layers[1].down_proj * 0)
    shallow.logits([SequenceInput(TOKENS[:8], 0, BLOCKS)])
    # Layer 4 sees behind layer 0 alone, since layer 1 adds nothing and the others are skipped.
    assert torch.allclose(decoder.caches[4][:8], shallow.caches[2][:8], atol=1e-5)
