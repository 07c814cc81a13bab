"""How much of a public trace an ideal cache has already: what was counted from the file, found by our cache.

The counts are of Mooncake's conversation trace (12,031 requests, 288,500 blocks of 512 tokens), in order of arrival:
the share of blocks that were asked for before, with an infinite cache and with a least-recently-used one of so many
blocks in which the end of a prompt is forgotten before its start.
"""

import os
from pathlib import Path

import polars as pl
import pytest
from engine_workloads import LinearStepTimes

from sim.engine.block_pool import BlockPool, Holding
from sim.engine.config import EngineConfig
from sim.fleet.equal_replicas import equal_replicas
from sim.fleet.model_prefixes import tell_models_apart
from traces.source import TraceSource

DATA = Path(os.environ.get("SIMCTL_DATA", Path(__file__).parents[4] / "shared" / "data")) / "traces"
CONVERSATION = DATA / "mooncake-fast25/conversation_trace.jsonl.gz"
BLOCK = 512
# Blocks of the cache → per cent of the blocks that it has.
LRU_HITS = {1_000: 4.5, 3_000: 6.5, 10_000: 21.2, 30_000: 32.6, 50_000: 35.5, 100_000: 36.4, 288_500: 36.6}


@pytest.fixture(scope="module")
def conversation() -> pl.DataFrame:
    if not CONVERSATION.is_file():
        pytest.skip(f"public trace {CONVERSATION} is not here; set SIMCTL_DATA to the folder that holds traces/")
    return TraceSource(file=str(CONVERSATION)).load(Path(), 0).requests


@pytest.mark.parametrize("blocks", LRU_HITS)
def test_the_block_pool_is_the_lru_cache_of_that_size(conversation: pl.DataFrame, blocks: int) -> None:
    """One request at a time: find, hold, give back."""
    pool, hits, asked = BlockPool(blocks, BLOCK), 0, 0
    for ids in conversation["prefix_ids"].to_list():
        holding, tokens = Holding(ids), len(ids) * BLOCK
        hit = pool.find(holding, tokens + 1)  # one more token is left to compute, so that all blocks may be hits
        assert pool.admit(holding, hit, tokens)
        pool.release(holding)
        hits += hit.tokens // BLOCK
        asked += len(ids)
    assert asked == 288_500
    assert 100 * hits / asked == pytest.approx(LRU_HITS[blocks], abs=0.05)


def test_an_engine_with_room_for_all_finds_what_was_asked_for_before(conversation: pl.DataFrame) -> None:
    """Through the whole fleet: requests one after the other, each with one token beyond its blocks and one to
    generate; 36.6 % of the blocks and 37.4 % of the tokens of the prompts as they are."""
    blocks = conversation["prefix_ids"].list.len()
    whole = conversation.with_columns(prompt_tokens=blocks * BLOCK + 1, output_tokens=pl.lit(1))
    engine = EngineConfig(kv_blocks=400_000, block_size=BLOCK, max_num_seqs=1, max_num_batched_tokens=1_000_000)
    cached = equal_replicas(whole, engine, LinearStepTimes(base=1e-6, per_token=0, per_kv=0)).run().requests
    assert 100 * cached["cached_tokens"].sum() / BLOCK / blocks.sum() == pytest.approx(36.6, abs=0.05)
    tokens = pl.DataFrame([cached["cached_tokens"], conversation["prompt_tokens"]]).min_horizontal()
    assert 100 * tokens.sum() / conversation["prompt_tokens"].sum() == pytest.approx(37.4, abs=0.05)


def test_models_have_no_prefix_in_common_and_keep_their_own() -> None:
    """Ids of a trace may be any numbers, hashes too."""
    ids = [[2**62, -5], [2**62], [2**62, -5, 7], [], None, [7], [2**62]]
    models = ["a", "b", "a", "b", "a", None, None]
    trace = pl.DataFrame(
        {"request_id": range(7), "prefix_ids": ids, "model": models}, schema_overrides={"prefix_ids": pl.List(pl.Int64)}
    )
    told = tell_models_apart(trace)
    assert told.drop("prefix_ids").equals(trace.drop("prefix_ids"))
    pairs = [
        (model, old, new)
        for model, before, after in zip(models, ids, told["prefix_ids"].to_list(), strict=True)
        for old, new in zip(before or [], after or [], strict=True)
    ]
    assert len({(model, old) for model, old, _ in pairs}) == len({new for *_, new in pairs}) == len(set(pairs))
    assert tell_models_apart(trace.with_columns(model=pl.lit("a"))).equals(trace.with_columns(model=pl.lit("a")))
    assert tell_models_apart(trace.drop("model")).equals(trace.drop("model"))


@pytest.mark.parametrize("router", ["prefix_aware", "kv_cost"])
def test_a_prefix_of_another_model_is_no_match(router: str) -> None:
    """Two models on two replicas, with the same prompt: the second model's first request goes to the idlest replica
    though the other was sent these tokens, and its later ones find their own."""
    trace = pl.DataFrame(
        {
            "request_id": range(6),
            "arrival": [0.0, 0.0, 100.0, 100.0, 200.0, 200.0],
            "prompt_tokens": [65] * 6,
            "output_tokens": [2] * 6,
            "prefix_ids": [[1, 2, 3, 4]] * 6,
            "prefix_block_tokens": [16] * 6,
            "model": ["a", "b"] * 3,
        }
    )
    found = equal_replicas(trace, EngineConfig(kv_blocks=1_000), LinearStepTimes(), replicas=2, router=router).run()
    first, second = found.requests["replica"][:2]
    assert first != second
    assert found.requests["replica"].to_list() == [first, second] * 3
    assert found.requests["cached_tokens"].to_list() == [0, 0, 64, 64, 64, 64]
