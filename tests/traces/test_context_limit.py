"""Prompts cut to their last tokens: lengths, and which prefixes are still equal."""

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ground.errors import UserError
from traces.checks import check
from traces.context_limit import ContextLimit, limit_context
from traces.reuse import prefix_reuse
from traces.synth import SynthSpec, generate
from traces.table import Trace

BLOCK = 16


def conversations(seed: int) -> Trace:
    spec = {
        "requests": 80,
        "arrivals": {"process": "poisson", "rate": 1.0},
        "lengths": {
            "prompt": {"distribution": "uniform", "low": 1, "high": 200},
            "output": {"distribution": "uniform", "low": 1, "high": 100},
        },
        "prefixes": {"groups": 2, "tokens": {"distribution": "constant", "value": 64}},
        "sessions": {
            "turns": {"distribution": "geometric", "mean": 6},
            "think_time": {"distribution": "exponential", "mean": 3},
        },
    }
    return generate(SynthSpec.model_validate(spec), seed)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 40), st.integers(1, 8))
def test_ids_are_equal_where_all_tokens_since_the_start_are(seed: int, tokens: int, drop: int) -> None:
    whole = conversations(seed)
    limit = ContextLimit(tokens=max(tokens, drop) * BLOCK, drop=drop * BLOCK)
    cut = limit_context(whole, limit)
    check(cut)
    meaning: dict[int, tuple[int, int]] = {}
    named: dict[tuple[int, int], int] = {}
    for before, after in zip(whole.requests.to_dicts(), cut.requests.to_dicts(), strict=True):
        lost = before["prompt_tokens"] - after["prompt_tokens"]
        assert lost % limit.drop == 0
        assert (lost == 0) == (before["prompt_tokens"] <= limit.tokens)
        assert limit.tokens - limit.drop < after["prompt_tokens"] <= limit.tokens or lost == 0
        assert len(after["prefix_ids"]) == max(0, len(before["prefix_ids"]) - lost // BLOCK)
        for position, new in enumerate(after["prefix_ids"]):
            pair = (lost, before["prefix_ids"][position + lost // BLOCK])
            assert meaning.setdefault(new, pair) == pair
            assert named.setdefault(pair, new) == new


def test_dropping_much_at_a_time_keeps_prefixes_alive() -> None:
    whole = conversations(3)
    rates = []
    for drop in (BLOCK, 32 * BLOCK):
        reuse = prefix_reuse(limit_context(whole, ContextLimit(tokens=40 * BLOCK, drop=drop)))
        assert reuse is not None
        rates.append(reuse.token_rate)
    assert rates[0] < 0.6 * rates[1]


def test_a_drop_that_cuts_blocks_is_refused() -> None:
    with pytest.raises(UserError, match=r"context_limit\.drop is 24 and prefix ids stand for 16 tokens"):
        limit_context(conversations(0), ContextLimit(tokens=100, drop=24))


def test_without_ids_only_lengths_change() -> None:
    requests = pl.DataFrame(
        {"request_id": [0, 1], "arrival": [0.0, 1.0], "prompt_tokens": [100, 20], "output_tokens": [1, 1]}
    )
    cut = limit_context(Trace(requests, "made", "made", 2), ContextLimit(tokens=50, drop=16))
    assert cut.requests["prompt_tokens"].to_list() == [36, 20]
    assert cut.notes["prompts_cut"] == 1
