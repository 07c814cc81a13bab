"""Thread blocks in waves: held to a simulation that knows no short cut, and to bounds that no schedule can beat."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibrate.model import load_model
from calibrate.waves import BlockWaves, splits_sequences, waves_of

MODEL = load_model("Llama-3.1-8B")  # 32 heads, 8 KV heads

# The law of the made-up tables.
MULTIPROCESSORS, BLOCK_RATE, TOTAL_RATE, START = 100, 5e8, 2e10, 3e-6

kernels = st.builds(
    BlockWaves,
    multiprocessors=st.integers(1, 12),
    heads=st.integers(1, 4),
    block_rate=st.floats(1.0, 20.0),
    total_rate=st.floats(1.0, 50.0),
    start=st.floats(0.0, 3.0),
)
batches = st.lists(st.floats(0.0, 1000.0), min_size=1, max_size=12).map(np.array)


def work_of(kernel: BlockWaves, contexts: np.ndarray) -> np.ndarray:
    return np.tile(contexts + kernel.start * kernel.block_rate, kernel.heads)


def naive_seconds(kernel: BlockWaves, contexts: np.ndarray) -> float:
    """Every block is visited: all that run go on at one rate until the first has ended, whose place the next takes."""
    waiting = work_of(kernel, contexts).tolist()
    running: list[float] = []
    now = 0.0
    while waiting or running:
        while waiting and len(running) < kernel.multiprocessors:
            running.append(waiting.pop(0))
        least = min(running)
        now += least / min(kernel.block_rate, kernel.total_rate / len(running))
        running.remove(least)
        running = [left - least for left in running]
    return now


def is_listed_whole(kernel: BlockWaves, contexts: np.ndarray) -> bool:
    """Few enough blocks for all to be scheduled one by one."""
    return len(contexts) * kernel.heads <= 5 * kernel.multiprocessors


@given(kernels, batches)
def test_few_blocks_are_scheduled_one_by_one(kernel: BlockWaves, contexts: np.ndarray) -> None:
    if is_listed_whole(kernel, contexts):
        assert kernel.seconds(contexts) == pytest.approx(naive_seconds(kernel, contexts), rel=1e-9, abs=1e-9)


@given(kernels, batches)
def test_no_schedule_beats_the_memory_or_the_longest_block(kernel: BlockWaves, contexts: np.ndarray) -> None:
    """Whatever the contexts, equal ones among them; a head's blocks are at most those that are listed one by one."""
    work = work_of(kernel, contexts)
    seconds = kernel.seconds(contexts) * (1 + 1e-9) + 1e-12
    assert seconds >= work.sum() / kernel.total_rate
    if len(contexts) <= 4 * kernel.multiprocessors:
        assert seconds >= work.max() / kernel.block_rate
    equal = np.full(len(contexts), contexts.mean())
    assert kernel.seconds(equal) * (1 + 1e-9) + 1e-12 >= work.sum() / kernel.total_rate


@given(kernels, batches, st.data())
def test_a_longer_context_never_ends_sooner(kernel: BlockWaves, contexts: np.ndarray, data: st.DataObject) -> None:
    """Blocks do not wait for each other, so Graham's anomalies cannot happen: the sorted ends all stay or rise."""
    longer = contexts.copy()
    longer[data.draw(st.integers(0, len(contexts) - 1))] += data.draw(st.floats(0.0, 500.0))
    assert kernel.seconds(longer) >= kernel.seconds(contexts) * (1 - 1e-12)


@given(kernels, batches)
def test_heads_repeat_the_batch(kernel: BlockWaves, contexts: np.ndarray) -> None:
    one_head = BlockWaves(kernel.multiprocessors, 1, kernel.block_rate, kernel.total_rate, kernel.start)
    assert kernel.seconds(contexts) == one_head.seconds(np.tile(contexts, kernel.heads))


@settings(max_examples=30)
@given(st.integers(0, 1_000_000), st.integers(12, 40), st.floats(0.0, 0.5))
def test_many_blocks_are_nearly_what_all_one_by_one_would_be(seed: int, rounds: int, spread: float) -> None:
    """16 blocks a round; a spread of 0.5 is a squared coefficient of variation of 0.28."""
    random = np.random.default_rng(seed)
    kernel = BlockWaves(16, 8, 4.0, 40.0, 2.0)
    contexts = np.sort(random.lognormal(5.0, spread, 2 * rounds))[::-1]
    assert kernel.seconds(contexts) == pytest.approx(naive_seconds(kernel, contexts), rel=0.02)


@pytest.mark.parametrize("sequences", [1, 8, 9, 16, 40])
def test_equal_contexts_run_in_rounds(sequences: int) -> None:
    """8 multiprocessors, 1 head: full rounds at the memory's rate, and what is left at its own."""
    kernel = BlockWaves(8, 1, 10.0, 40.0, 0.5)
    work, (full, left) = 100.0 + 0.5 * 10.0, divmod(sequences, 8)
    expected = full * work * 8 / 40.0 + (work * max(1 / 10.0, left / 40.0) if left else 0.0)
    assert kernel.seconds(np.full(sequences, 100.0)) == pytest.approx(expected)


def test_a_long_block_at_the_end_of_the_list_runs_alone() -> None:
    kernel = BlockWaves(2, 1, 1.0, 2.0, 0.0)
    assert kernel.seconds(np.array([1.0, 1.0, 1.0, 1.0, 10.0])) == pytest.approx(12.0)
    assert kernel.seconds(np.array([10.0, 1.0, 1.0, 1.0, 1.0])) == pytest.approx(10.0)


@pytest.mark.parametrize(
    ("sequences", "kv_heads", "multiprocessors", "splits"),
    [(19, 8, 100, True), (20, 8, 100, False), (21, 8, 100, False), (1, 1, 1, True), (2, 1, 1, False)],
)
def test_sequences_are_split_below_four_fifths_of_two_blocks_each(
    sequences: int, kv_heads: int, multiprocessors: int, splits: bool
) -> None:
    assert splits_sequences(sequences, kv_heads, multiprocessors) is splits


# What a table tells of the kernel.


def attention_table() -> pl.DataFrame:
    """Beside a prefill a lone sequence is bound by its block and short ones by their rounds; alone, by the memory."""

    def beside(n: int, kv: int) -> float:
        return 2e-5 + START * np.ceil(n * MODEL.heads / MULTIPROCESSORS) + kv / BLOCK_RATE

    rows = [(chunk, 0, n, kv, beside(n, kv)) for chunk in (16, 64) for n in (1, 4, 32) for kv in (16, 256, 1024, 4096)]
    rows += [(16, 512, n, kv, 9.0) for n in (1, 4) for kv in (16, 256)]
    rows += [(16, 0, 0, 0, 1e-5), (64, 0, 0, 0, 4e-5)]
    rows += [(0, 0, n, kv, MODEL.kv_heads * n * kv / TOTAL_RATE) for n in (1, 8, 64) for kv in (16, 256, 4096)]
    names = ["prefill_chunk", "kv_prefill", "n_decode", "kv_decode", "seconds"]
    return pl.DataFrame(rows, schema=names, orient="row")


def test_the_law_behind_a_table_is_found() -> None:
    found = waves_of(attention_table().sample(fraction=1.0, shuffle=True, seed=1), MODEL, MULTIPROCESSORS)
    assert found is not None
    alone, beside = found
    for waves in found:
        assert waves.multiprocessors == MULTIPROCESSORS
        assert waves.block_rate == pytest.approx(BLOCK_RATE)
        assert waves.start == pytest.approx(START)
    assert (alone.heads, beside.heads) == (8, 32)
    assert alone.total_rate == pytest.approx(TOTAL_RATE)
    assert beside.total_rate == pytest.approx(TOTAL_RATE * 4), "the query heads of a KV head share its data"


IS_BESIDE = (pl.col("prefill_chunk") > 0) & (pl.col("n_decode") > 0)


@pytest.mark.parametrize(
    ("missing", "kept"),
    [
        ("batches beside a prefill", ~IS_BESIDE),
        ("pure decode batches", pl.col("prefill_chunk") > 0),
        ("a lone sequence over contexts", ~IS_BESIDE | (pl.col("n_decode") > 1) | (pl.col("kv_decode") == 16)),
        ("short contexts over sequences", ~IS_BESIDE | (pl.col("n_decode") == 1)),
        ("batches of more than one round", ~IS_BESIDE | (pl.col("n_decode") * MODEL.heads <= 100)),
    ],
)
def test_a_table_without_an_ingredient_tells_nothing(missing: str, kept: pl.Expr) -> None:
    assert waves_of(attention_table().filter(kept), MODEL, MULTIPROCESSORS) is None, missing


def test_contexts_that_take_less_time_the_longer_they_are_tell_nothing() -> None:
    falling = pl.when(IS_BESIDE).then(1.0 - pl.col("seconds")).otherwise("seconds").alias("seconds")
    assert waves_of(attention_table().with_columns(falling), MODEL, MULTIPROCESSORS) is None
