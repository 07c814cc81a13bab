"""Who is kept within a budget: against lists that are sorted anew at every token."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from calibrate.decoder import SequenceInput
from calibrate.heavy_hitters import HeavyHitters, KeptSpan
from calibrate.model import ModelShape
from calibrate.pruned_decoder import make_decoder
from calibrate.pruning import Pruning

HEADS, KV_HEADS, SIZE = 4, 2, 8
BLOCK = 4
SMALL = ModelShape("small", 32, 3, HEADS, KV_HEADS, SIZE, 48, 97, max_context=256, dtype_bytes=4)


class Listed:
    """One sequence of one KV head: (position, key, value, score) of everybody who is kept."""

    def __init__(self, budget: int, recent: int) -> None:
        self.budget, self.recent = budget, recent
        self.kept: list[tuple[int, torch.Tensor, torch.Tensor, float]] = []

    def decode(self, position: int, queries: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        if len(self.kept) == self.budget:
            old = [one for one in self.kept if one[0] <= position - self.recent]
            gone = min(old, key=lambda one: one[3])
            self.kept = [one for one in self.kept if one[0] != gone[0]]
        self.kept.append((position, key, value, 0.0))
        weights = (queries @ torch.stack([one[1] for one in self.kept]).T / SIZE**0.5).softmax(-1)
        self.kept = [(p, k, v, s + float(w)) for (p, k, v, s), w in zip(self.kept, weights.sum(0), strict=True)]
        return weights @ torch.stack([one[2] for one in self.kept])


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 4), st.integers(1, 45), st.integers(0, 2**31))
def test_decodes_keep_whom_lists_keep(blocks: int, length: int, seed: int) -> None:
    budget = BLOCK * blocks
    rng = random.Random(seed)
    recent = rng.randint(1, budget - 1)
    torch.manual_seed(seed)
    query, kv = torch.randn(length, HEADS, SIZE) * 2, torch.randn(length, 2, KV_HEADS, SIZE)
    slots = torch.tensor(rng.sample(range(64), budget))
    kept = HeavyHitters(64, KV_HEADS, budget, recent, torch.device("cpu"))
    cache = torch.zeros(64, 2, KV_HEADS, SIZE)
    lists = [Listed(budget, recent) for _ in range(KV_HEADS)]
    for at in range(length):
        span = KeptSpan(0, 1, at, slots[: min(budget, BLOCK * (at // BLOCK + 1))])
        found = kept.attend(query[at : at + 1], kv[at : at + 1], cache, [span]).view(KV_HEADS, -1, SIZE)
        for head, one in enumerate(lists):
            expected = one.decode(at, query[at].view(KV_HEADS, -1, SIZE)[head], kv[at, 0, head], kv[at, 1, head])
            assert torch.allclose(found[head], expected, atol=1e-4)
            assert len(one.kept) <= budget
            held = slots[: len(one.kept)]
            assert sorted(kept._positions[held, head].tolist()) == sorted(entry[0] for entry in one.kept)
            assert set(range(max(0, at - recent + 1), at + 1)) <= {entry[0] for entry in one.kept}


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 40), st.integers(0, 2**31))
def test_a_chunk_is_cut_down_to_the_recent_and_the_heaviest(length: int, seed: int) -> None:
    budget, recent = 12, 5
    torch.manual_seed(seed)
    query, kv = torch.randn(length, HEADS, SIZE) * 2, torch.randn(length, 2, KV_HEADS, SIZE)
    slots = torch.arange(20, 32)
    kept = HeavyHitters(64, KV_HEADS, budget, recent, torch.device("cpu"))
    cache = torch.zeros(64, 2, KV_HEADS, SIZE)
    kept.attend(query, kv, cache, [KeptSpan(0, length, 0, slots)])
    for head in range(KV_HEADS):
        queries = query.view(length, KV_HEADS, -1, SIZE)[:, head]
        scores = torch.einsum("qgd,kd->gqk", queries, kv[:, 0, head]) / SIZE**0.5
        weights = scores.masked_fill(torch.ones(length, length).triu(1).bool(), -torch.inf).softmax(-1).sum((0, 1))
        heaviest = sorted(range(max(0, length - recent)), key=lambda token: -float(weights[token]))
        expected = sorted([*heaviest[: budget - recent], *range(max(0, length - recent), length)])
        held = slots[: len(expected)]
        assert kept._positions[held, head].tolist() == expected
        assert torch.equal(cache[held, :, head], kv[expected, :, head])
        assert torch.allclose(kept._scores[held, head], weights[expected], atol=1e-4)


def test_a_budget_for_all_prunes_nothing() -> None:
    tokens = [SequenceInput([random.Random(1).randrange(97) for _ in range(50)], 0, list(range(16)))]
    whole = make_decoder(SMALL, kv_blocks=16, block_size=BLOCK)
    kept = make_decoder(SMALL, pruning=Pruning(3, budget=64, recent=8), kv_blocks=16, block_size=BLOCK)
    assert torch.allclose(whole.logits(tokens)[0], kept.logits(tokens)[0], atol=1e-4)


@pytest.mark.parametrize("chunk", [1, 7, 40])
def test_a_sequence_uses_no_more_slots_than_its_budget(chunk: int) -> None:
    decoder = make_decoder(SMALL, pruning=Pruning(3, budget=8, recent=3), kv_blocks=16, block_size=BLOCK)
    tokens = [random.Random(2).randrange(97) for _ in range(40)]
    for start in range(0, 40, chunk):
        decoder.step([SequenceInput(tokens[start : start + chunk], start, [7, 3])])
    for cache in decoder.caches:
        written = cache.view(17, BLOCK, -1).abs().sum((1, 2)).nonzero().view(-1).tolist()
        assert written == [3, 7]
