"""The numbers of a trace, against hand counts, a naive cache, and published figures of public traces."""

import os
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from traces.dequantise import dequantise
from traces.describe import arrival_times, describe, dispersion, peak_rate
from traces.loading import read
from traces.lru_stack import are_chains
from traces.reuse import _Chains, lru_curve, prefix_reuse
from traces.table import Trace

DATA = Path(os.environ.get("SIMCTL_DATA", Path(__file__).parents[3] / "shared" / "data")) / "traces"


def public(name: str) -> Trace:
    path = DATA / name
    if not path.exists():
        pytest.skip(f"public trace {path} is not here; set SIMCTL_DATA to the folder that holds traces/")
    return read(path)


def blocks(*rows: tuple[int, list[int]]) -> Trace:
    table = pl.DataFrame(
        {
            "request_id": range(len(rows)),
            "arrival": [float(row) for row in range(len(rows))],
            "prompt_tokens": [prompt for prompt, _ in rows],
            "output_tokens": [8] * len(rows),
            "prefix_ids": [ids for _, ids in rows],
            "prefix_block_tokens": [4] * len(rows),
        }
    )
    return Trace(table, "canonical", "here", len(rows))


def test_reuse_counts_blocks_and_tokens_of_the_prompt_only() -> None:
    # Request 0: 6 prompt tokens in 2 blocks, a third block of output. Request 1 continues it with 13 tokens.
    reuse = prefix_reuse(blocks((6, [1, 2, 3]), (13, [1, 2, 3, 4])))
    assert reuse is not None
    assert (reuse.blocks, reuse.hit_blocks) == (2 + 4, 3)
    assert (reuse.tokens, reuse.hit_tokens) == (6 + 13, 12)


def test_a_partial_block_counts_its_own_tokens() -> None:
    reuse = prefix_reuse(blocks((6, [1, 2]), (6, [1, 2])))
    assert reuse is not None and (reuse.hit_blocks, reuse.hit_tokens) == (2, 6)


def test_a_prefix_leaves_the_cache_after_what_follows_it() -> None:
    # Room for 2: of [1, 2, 3] the leaf 3 leaves; then 1 and 2 are found, 3 is not.
    reuse = prefix_reuse(blocks((12, [1, 2, 3]), (12, [1, 2, 3])), capacity=2)
    assert reuse is not None and reuse.hit_blocks == 2


chains = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=5), min_size=1, max_size=25)


@given(chains, st.integers(0, 12))
def test_lru_agrees_with_a_list_of_blocks_by_last_use(paths: list[list[int]], capacity: int) -> None:
    names: dict[tuple[int, ...], int] = {}
    rows = [[names.setdefault(tuple(path[: end + 1]), len(names)) for end in range(len(path))] for path in paths]
    by_last_use: list[int] = []
    hits = 0
    for ids in rows:
        hits += sum(block in by_last_use for block in ids)
        for block in ids[::-1]:
            by_last_use = [other for other in by_last_use if other != block] + [block]
        by_last_use = by_last_use[len(by_last_use) - capacity :] if len(by_last_use) > capacity else by_last_use
    trace = blocks(*((4 * len(ids), ids) for ids in rows))
    reuse = prefix_reuse(trace, capacity)
    assert reuse is not None and reuse.hit_blocks == hits
    assert lru_curve(trace, [1, capacity, 50])[capacity] == reuse.block_rate


@given(chains, st.integers(0, 12), st.integers(0, 5))
def test_one_pass_over_the_stack_agrees_with_visiting_every_block(
    paths: list[list[int]], capacity: int, answer: int
) -> None:
    names: dict[tuple[int, ...], int] = {}
    rows = [[names.setdefault(tuple(path[: end + 1]), len(names)) for end in range(len(path))] for path in paths]
    # The last `answer` blocks of each request are output: used, but not looked up.
    trace = blocks(*((max(4 * (len(ids) - answer), 1), ids) for ids in rows))
    found = _Chains.of(trace.requests)
    assert are_chains(found.ids, found.lengths)
    by_block = found._hits_block_by_block(capacity)
    assert found.hits([capacity])[:, 0].tolist() == by_block.tolist()


def test_ids_that_are_no_chains_are_told() -> None:
    def told(*rows: list[int]) -> bool:
        found = _Chains.of(blocks(*((99, row) for row in rows)).requests)
        return are_chains(found.ids, found.lengths)

    assert told([0, 1, 2], [0, 3], [0, 1, 4])
    assert not told([0, 1], [2, 1])
    assert not told([0, 1], [1])
    assert not told([0, 1], [1, 0])
    assert not told([0, 0])


def test_rates_of_a_trace_that_can_be_counted_by_hand() -> None:
    times = np.array([0.0, 0.1, 0.2, 1.5, 2.5, 2.6, 3.0])
    assert peak_rate(times, 1.0) == 3
    assert dispersion(times, 1.0) == pytest.approx(np.var([3, 1, 2]) / 2)
    assert dispersion(times, 2.0) is None  # one full window


def test_one_request_has_no_rate() -> None:
    arrivals = describe(blocks((4, [1])))["arrivals"]
    assert (arrivals["rate_mean"], arrivals["gap_cv"], arrivals["rate_peak_1s"]) == (None, None, 1.0)


def test_mooncake_conversation_has_its_published_figures() -> None:
    trace = public("mooncake-fast25/conversation_trace.jsonl.gz")
    found = describe(trace)
    assert found["requests"] == found["rows_read"] == 12_031
    arrivals, reuse = found["arrivals"], found["prefix_reuse"]
    assert arrivals["rate_mean"] == pytest.approx(3.40, abs=0.005)
    assert arrivals["rate_peak_1s"] == 28 and arrivals["rate_peak_60s"] == pytest.approx(4.1, abs=0.05)
    assert arrivals["gap_cv"] == pytest.approx(3.03, abs=0.005)
    assert arrivals["iod_1s"] == pytest.approx(7.9, abs=0.05) and arrivals["iod_60s"] == pytest.approx(2.9, abs=0.05)
    assert [round(value) for value in found["tokens"]["prompt"].values()] == [12035, 6909, 27367, 85400, 126195]
    assert [round(value + 0.01) for value in found["tokens"]["output"].values()] == [343, 350, 597, 1119, 2000]
    assert (reuse["prompt_blocks"], reuse["distinct_blocks"]) == (288_500, 182_790)
    assert round(100 * reuse["blocks"], 1) == 36.6 and round(100 * reuse["tokens"], 1) == 37.4
    curve = {capacity: round(100 * share, 1) for capacity, share in reuse["lru_blocks"].items()}
    assert curve == {1_000: 4.5, 3_000: 6.5, 10_000: 21.2, 30_000: 32.6, 50_000: 35.5, 100_000: 36.4}


def test_mooncake_conversation_is_poisson_once_dequantised() -> None:
    spread = dequantise(public("mooncake-fast25/conversation_trace.jsonl.gz"), seed=0)
    assert spread.notes["dequantised"]["quantum_seconds"] == pytest.approx(3.0, abs=0.1)
    gaps = np.diff(arrival_times(spread))
    assert gaps.std() / gaps.mean() == pytest.approx(1.01, abs=0.03)  # over the draws of the seed


def test_azure_conversation_has_its_published_figures() -> None:
    found = describe(public("azure-llm-2023/AzureLLMInferenceTrace_conv.csv.gz"))
    assert found["requests"] == 19_366
    arrivals = found["arrivals"]
    assert arrivals["rate_mean"] == pytest.approx(5.53, abs=0.005)
    assert arrivals["rate_peak_1s"] == 16 and arrivals["rate_peak_60s"] == pytest.approx(8.45)
    assert arrivals["gap_cv"] == pytest.approx(1.09, abs=0.005)
    assert arrivals["iod_1s"] == pytest.approx(1.4, abs=0.05)
    # 20.6 is quoted too: it counts the last 22 s as if they were a whole window.
    assert arrivals["iod_60s"] == pytest.approx(16.1, abs=0.05)
    assert [round(value + 0.01) for value in found["tokens"]["prompt"].values()] == [1155, 1020, 2735, 4142, 14050]
    assert [round(value) for value in found["tokens"]["output"].values()] == [211, 129, 424, 601, 1000]


def test_azure_code_has_its_published_figures() -> None:
    found = describe(public("vidur/splitwise_code.csv.gz"))
    arrivals = found["arrivals"]
    assert arrivals["rate_mean"] == pytest.approx(2.57, abs=0.005)
    assert arrivals["rate_peak_1s"] == 67 and arrivals["rate_peak_60s"] == pytest.approx(10.5, abs=0.05)
    assert arrivals["gap_cv"] == pytest.approx(13.15, abs=0.005)
    assert arrivals["iod_1s"] == pytest.approx(13.2, abs=0.05)
    assert found["tokens"]["prompt"]["p50"] == 1469 and found["tokens"]["output"]["max"] == 1899


def test_vidurs_copy_of_azure_conversation_is_azure_conversation() -> None:
    vidur = public("vidur/splitwise_conv.csv.gz").requests
    azure = public("azure-llm-2023/AzureLLMInferenceTrace_conv.csv.gz").requests
    assert vidur.drop("arrival").equals(azure.drop("arrival"))
    assert (vidur["arrival"] - azure["arrival"]).abs().max() < 1e-6  # type: ignore[operator]


@pytest.mark.parametrize(
    ("name", "format", "requests"),
    [
        ("azure-llm-2024.csv", "azure", 10),
        ("azure-lmm-2025.csv", "azure", 10),
        ("burstgpt-v1.csv", "burstgpt", 3),
        ("mooncake-arxiv.jsonl", "mooncake", 4),
        ("mooncake-fast25-readme.jsonl", "mooncake", 2),
    ],
)
def test_published_samples_are_recognised(name: str, format: str, requests: int) -> None:
    trace = public(f"format-fixtures/{name}")
    assert (trace.format, len(trace.requests)) == (format, requests)


loose_chains = st.lists(st.tuples(st.integers(1, 30), st.lists(st.integers(0, 9), max_size=8)), min_size=1, max_size=20)


@given(loose_chains)
def test_a_cache_without_limit_is_one_that_is_large_enough(rows: list[tuple[int, list[int]]]) -> None:
    trace = blocks(*rows)
    assert prefix_reuse(trace) == prefix_reuse(trace, 1000)
    spread = blocks(*((prompt, [block * 10**15 for block in ids]) for prompt, ids in rows))
    assert prefix_reuse(spread) == prefix_reuse(trace)
