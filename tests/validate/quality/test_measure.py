"""What pruning costs: the measure itself, and the pruned decoder against another way of computing the same."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

# Puts tests/support on the path.
from small_language_model import SMALL, small_corpus

from calibrate.decoder import Decoder
from calibrate.model import load_model
from calibrate.pruned_decoder import make_decoder
from ground.errors import UserError
from sim.engine.pruning.settings import PruningSettings
from validate.quality.excerpts import Excerpt, blocks_of, excerpts, read
from validate.quality.language_model import LanguageModel
from validate.quality.measure import divergence, measure
from validate.quality.text import Corpus
from validate.quality.train import Training, train

CORPUS = small_corpus()


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def trained():
    return train(Training(steps=30, sequences=2, length=64, warm_up=5), CORPUS.training, SMALL)


@pytest.fixture(scope="module")
def folder(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    trained.save(folder)
    return folder


@pytest.fixture(scope="module")
def measured(folder):
    """One table of every policy of the tests: each is measured once."""
    policies = [
        {"skip_layers": {"layers": [1]}},
        {"skip_mlp": {"layers": [1]}},
        {"window": {"sinks": 16, "window": 256}},
        {"window": {"sinks": 16, "window": 16}},
        {"heavy_hitters": {"budget": 256, "recent": 128}},
        {"quantised_kv": {"dtype": "int8"}},
        {"early_exit": {"layers": [0, 1], "confidence": 1.0}},
        {"early_exit": {"layers": [0, 1], "confidence": 0.2}},
    ]
    return measure(load_model(folder), folder, [PruningSettings(**one) for one in policies], CORPUS)


def of(measured, name, **settings):
    found = [
        policy
        for policy in measured.policies
        if name in policy.pruning and settings.items() <= policy.pruning[name].items()
    ]
    assert len(found) == 1
    return found[0]


rows = st.integers(0, 2**32 - 1).map(
    lambda seed: torch.randn(4, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).log_softmax(-1)
)


@given(rows, rows)
def test_divergence_is_that_of_the_textbook(ours, theirs):
    text = Excerpt(0, [1, 2, 3, 4], [0, 1, 2, 3])
    tokens, kl, agree, nll, nll_pruned = divergence([ours], [theirs], [text])[0]
    assert tokens == 4
    assert kl == pytest.approx(torch.nn.functional.kl_div(theirs, ours, reduction="sum", log_target=True).item())
    assert kl >= 0
    assert agree == sum(a.argmax() == b.argmax() for a, b in zip(ours, theirs, strict=True))
    assert nll == pytest.approx(-sum(ours[place, place].item() for place in range(4)))
    assert nll_pruned == pytest.approx(-sum(theirs[place, place].item() for place in range(4)))


@given(rows)
def test_a_model_does_not_differ_from_itself(ours):
    _, kl, agree, nll, nll_pruned = divergence([ours], [ours], [Excerpt(0, [1, 2, 3, 4], [0, 1, 2, 3])])[0]
    assert (kl, agree) == (0.0, 4.0)
    assert nll == nll_pruned


def test_what_leaves_nothing_out_changes_nothing(measured):
    longest = 256
    for policy in (
        of(measured, "window", window=longest),
        of(measured, "heavy_hitters", budget=longest),
        of(measured, "early_exit", confidence=1.0),
    ):
        assert policy.kl.mean == pytest.approx(0, abs=1e-6)
        assert policy.top1.mean == pytest.approx(1.0, abs=0.002)
        assert policy.perplexity_ratio.mean == pytest.approx(1.0, abs=1e-4)


def test_a_skipped_layer_costs_what_the_model_without_it_does(trained, measured):
    """Computed once more by the training model, from which the layer's parameters are gone."""
    parameters = {
        name.replace("layers.2.", "layers.1."): value
        for name, value in trained.parameters.items()
        if ".layers.1." not in name
    }
    shorter = LanguageModel(replace(SMALL, layers=2), parameters, 256)
    texts = excerpts(CORPUS.held_out)
    nll, tokens = 0.0, 0
    for text in texts:
        *_, last = shorter.hidden(torch.tensor([text.tokens]))
        found = torch.nn.functional.cross_entropy(
            shorter.logits(last)[0], torch.tensor(text.following), reduction="sum"
        )
        nll, tokens = nll + found.item(), tokens + len(text.tokens)
    assert of(measured, "skip_layers").perplexity.mean == pytest.approx(math.exp(nll / tokens), rel=1e-4)


def test_what_leaves_more_out_costs_more(measured):
    whole = of(measured, "window", window=256)
    assert of(measured, "quantised_kv").kl.mean < of(measured, "skip_mlp").kl.mean < of(measured, "skip_layers").kl.mean
    assert whole.kl.mean < of(measured, "window", window=16).kl.mean
    assert of(measured, "skip_layers").top1.mean < of(measured, "quantised_kv").top1.mean <= 1
    for policy in measured.policies:
        assert policy.kl.low - 1e-9 <= policy.kl.mean <= policy.kl.high + 1e-9
        assert policy.perplexity_ratio.mean == pytest.approx(
            policy.perplexity.mean / measured.unpruned.perplexity.mean, rel=1e-9
        )


def test_layers_that_tokens_run_are_counted_where_the_input_decides(measured):
    eager, reluctant = (of(measured, "early_exit", confidence=confidence) for confidence in (0.2, 1.0))
    assert reluctant.layers.mlp == reluctant.decoded.mlp == (1.0, 1.0, 1.0)
    for shares in (eager.layers, eager.decoded):
        assert shares.attention == shares.mlp
        assert shares.mlp[0] == 1.0
        assert shares.mlp[0] > shares.mlp[1] >= shares.mlp[2]
    assert of(measured, "skip_layers").layers is None


def test_bits_and_perplexity_are_one_number(measured):
    unpruned = measured.unpruned
    assert unpruned.perplexity.mean == pytest.approx(2**unpruned.bits_per_byte.mean)
    assert measured.text["tokens"] == sum(len(text.tokens) for text in excerpts(CORPUS.held_out))


def test_one_token_at_a_time_is_the_same_text(folder):
    texts = excerpts(CORPUS.held_out)
    texts = [replace(text, tokens=text.tokens[: 20 + 7 * place]) for place, text in enumerate(texts[:3])]
    model = load_model(folder)

    def decoder():
        return Decoder(model, kv_blocks=len(texts) * 16, block_size=16, weights=folder)

    whole, stepped = (read(decoder(), texts, one_by_one=one_by_one) for one_by_one in (False, True))
    for ours, theirs in zip(whole, stepped, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@given(st.integers(1, 5), st.integers(1, 70))
def test_no_two_sequences_share_a_block(count, length):
    blocks = blocks_of(count, length, 16)
    every = [block for own in blocks for block in own]
    assert len(set(every)) == len(every)
    assert all(16 * len(own) >= length for own in blocks)


def test_excerpts_do_not_overlap_and_each_byte_follows_its_own():
    texts = excerpts(CORPUS.held_out, 100)
    for index, document in enumerate(CORPUS.held_out):
        own = [text for text in texts if text.document == index]
        assert bytes(byte for text in own for byte in text.tokens) == document.text[:200]
        assert bytes(byte for text in own for byte in text.following) == document.text[1:201]


def test_known_policies_are_kept(folder, measured):
    policies = [PruningSettings(skip_layers={"layers": [1]}), PruningSettings(skip_layers={"layers": [2]})]
    told = []
    again = measure(load_model(folder), folder, policies, CORPUS, known=measured, on_policy=told.append)
    assert again.policies[:-1] == measured.policies
    assert again.policies[-1].pruning == {"skip_layers": {"layers": [2]}}
    assert [len(table.policies) for table in told] == [len(measured.policies), len(measured.policies) + 1]


def test_what_was_measured_of_other_weights_or_text_is_not_mixed(folder, measured, tmp_path):
    model, policy = load_model(folder), [PruningSettings(skip_layers={"layers": [1]})]
    LanguageModel.drawn(SMALL, 1, 16).save(tmp_path)
    with pytest.raises(UserError, match=r"weights\.sha256"):
        measure(model, tmp_path, policy, CORPUS, known=measured)
    with pytest.raises(UserError, match=r"text\.documents"):
        measure(model, folder, policy, Corpus(CORPUS.documents[1:]), known=measured)


def test_a_model_whose_tokens_are_no_bytes_is_refused(folder):
    with pytest.raises(UserError, match="has 4096 tokens; expected 256"):
        measure(load_model("tiny-llama"), folder, [], CORPUS)


def test_equal_seeds_and_texts_give_equal_tables(folder, measured):
    policy = [PruningSettings(quantised_kv={"dtype": "int8"})]
    again = measure(load_model(folder), folder, policy, CORPUS)
    assert again.policies[0] == of(measured, "quantised_kv")


def test_pruned_and_plain_decoders_agree_on_what_is_not_pruned(folder):
    texts = excerpts(CORPUS.held_out)[:1]
    model = load_model(folder)
    settings = {"kv_blocks": 16, "block_size": 16, "weights": folder}
    plain = read(Decoder(model, **settings), texts, one_by_one=False)[0]
    pruning = PruningSettings(window={"sinks": 16, "window": 240}).of(model)
    windowed = read(make_decoder(model, pruning=pruning, **settings), texts, one_by_one=False)[0]
    assert np.allclose(plain.numpy(), windowed.numpy(), atol=1e-4)
