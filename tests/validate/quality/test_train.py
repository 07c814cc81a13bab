"""The small model: its arithmetic is the decoder's, and it learns."""

import json
from dataclasses import replace

import pytest
import torch

# Puts tests/support on the path.
from small_language_model import SMALL, small_corpus

from calibrate.decoder import Decoder, SequenceInput
from calibrate.model import load_model
from validate.quality.adamw import AdamW
from validate.quality.language_model import SHAPE, LanguageModel
from validate.quality.train import Training, held_out_bits, train, train_to

SHORT = Training(steps=40, sequences=2, length=64, warm_up=5)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("heads", [(2, 1), (2, 2), (4, 2)])
def test_the_decoder_computes_what_was_trained(tmp_path, heads):
    shape = replace(SMALL, heads=heads[0], kv_heads=heads[1])
    model = LanguageModel.drawn(shape, seed=3, longest=48)
    with torch.no_grad():
        for value in model.parameters.values():
            value += 0.1 * torch.randn(value.shape, generator=torch.Generator().manual_seed(value.numel()))
    model.save(tmp_path)
    read = load_model(tmp_path)
    assert read.differences(shape) == []
    assert (read.rms_eps, read.rope_theta) == (shape.rms_eps, shape.rope_theta)
    decoder = Decoder(read, kv_blocks=3, block_size=16, weights=tmp_path)
    tokens = torch.randint(256, (48,), generator=torch.Generator().manual_seed(0))
    found = decoder.logits([SequenceInput(tokens.tolist(), 0, [0, 1, 2])])[0]
    *_, last = model.hidden(tokens[None])
    torch.testing.assert_close(found, model.logits(last)[0].detach(), rtol=1e-4, atol=1e-4)


def test_it_learns_more_than_which_byte_follows_which(tmp_path):
    told = []
    facts = train_to(tmp_path, SHORT, corpus=small_corpus(), shape=SMALL, on_step=told.append)
    assert len(told) == SHORT.steps
    assert told[-1] < told[0] / 2
    bits = facts["held_out_bits_per_byte"]
    assert bits["model"] < bits["bigram"]
    assert json.loads((tmp_path / "training.json").read_text()) == facts
    assert sorted(file.name for file in tmp_path.iterdir()) == ["config.json", "model.safetensors", "training.json"]


def test_the_same_seed_gives_the_same_weights():
    documents, short = small_corpus().training, replace(SHORT, steps=4)
    first, again = (train(short, documents, SMALL).parameters for _ in range(2))
    other = train(replace(short, seed=1), documents, SMALL).parameters
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])


def test_early_layers_learn_to_answer_where_they_are_asked():
    """Asked through the last norm and head, as an early exit asks."""
    documents = small_corpus().training

    def bits_of_first_layer(exit_weight):
        model = train(replace(SHORT, exit_weight=exit_weight), documents, SMALL)
        text = torch.tensor(list(documents[0].text[:65]))
        first, *_ = model.hidden(text[None, :-1])
        return torch.nn.functional.cross_entropy(model.logits(first)[0], text[1:]).item()

    assert bits_of_first_layer(0.3) < 0.8 * bits_of_first_layer(0.0)


def test_every_byte_but_the_first_is_predicted_once():
    """A model whose logits are all equal says eight bits a byte, whatever the windows; and counts them all."""
    model = LanguageModel.drawn(SMALL, seed=0, longest=32)
    with torch.no_grad():
        model.parameters["lm_head.weight"].zero_()
    assert held_out_bits(model, small_corpus().held_out, 32) == pytest.approx(8.0, rel=1e-6)


@pytest.mark.parametrize("size", [2, 3, 32, 33, 34, 48, 49, 50, 64, 65, 100])
def test_windows_leave_nothing_out(size, monkeypatch):
    model = LanguageModel.drawn(SMALL, seed=0, longest=32)
    document = replace(small_corpus().held_out[0], text=bytes(range(size)))
    counted = []
    original = torch.nn.functional.cross_entropy

    def counting(logits, wanted, reduction):
        counted.append(wanted)
        return original(logits, wanted, reduction=reduction)

    monkeypatch.setattr("validate.quality.train.functional.cross_entropy", counting)
    held_out_bits(model, [document], 32)
    fresh = [*counted[0].tolist(), *(byte for window in counted[1:] for byte in window[16:].tolist())]
    assert fresh == list(range(1, size))


def test_the_shape_is_small_and_has_layers_to_leave_out():
    parameters = sum(value.numel() for value in LanguageModel.drawn(SHAPE, 0, 16).parameters.values())
    assert parameters < 3_000_000
    assert parameters * SHAPE.dtype_bytes == SHAPE.weight_bytes()
    assert SHAPE.layers >= 6


def test_the_optimiser_is_that_of_torch():
    """Held to torch's own, which loads its compiler first: so this takes two seconds."""
    start = [torch.randn(3, 4, generator=torch.Generator().manual_seed(1)), torch.ones(4)]
    ours, theirs = ([value.clone().requires_grad_() for value in start] for _ in range(2))
    optimizer = AdamW(ours, 0.1, (0.9, 0.98))
    reference = torch.optim.AdamW(
        [{"params": theirs[:1], "weight_decay": 0.1}, {"params": theirs[1:], "weight_decay": 0.0}], betas=(0.9, 0.98)
    )
    for step in range(6):
        rate = 0.1 / (step + 1)
        for values in (ours, theirs):
            (values[0] @ values[1] - step).square().sum().backward()
        optimizer.step(rate)
        for group in reference.param_groups:
            group["lr"] = rate
        reference.step()
        reference.zero_grad()
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
            assert one.grad is None
