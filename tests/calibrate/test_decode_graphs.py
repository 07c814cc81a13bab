"""A decode step padded for a graph gives the tokens of the step as it is, and touches nothing else."""

import random
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from calibrate.decode_graphs import _BLOCKS, _CONTEXT, Capture, DecodeGraphs
from calibrate.decoder import Decoder, SequenceInput
from calibrate.model import ModelShape
from ground.errors import UserError

LLAMA = ModelShape("small", 32, 3, 4, 2, 8, 48, 97, max_context=64, dtype_bytes=4)
BLOCK = 4
BLOCKS = 8 * 16


def assert_holds(graphs: DecodeGraphs, decoder: Decoder, batch: list[SequenceInput], size: int) -> None:
    """What a captured graph would read on a GPU; torch's kernels on a CPU are given the blocks by the host."""
    tables = graphs._inputs[:size, _BLOCKS:].tolist()
    for table, index in zip(tables, decoder.order(batch), strict=False):
        width = -(-(batch[index].start + 1) // BLOCK)
        assert table[:width] == list(batch[index].blocks[:width])
    assert all(table[0] == decoder.padding_block for table in tables[len(batch) :])
    contexts = graphs._inputs[:size, _CONTEXT].tolist()
    assert contexts == sorted((one.start + 1 for one in batch), reverse=True) + [1] * (size - len(batch))


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1), st.sets(st.integers(1, 8), min_size=1), st.booleans())
def test_padded_steps_give_the_tokens_of_unpadded_ones(seed: int, sizes: set[int], unseen: bool) -> None:
    """Sequences join, leave and change rows, prefills mix in; with `unseen` the tokens stay on the device."""
    rng = random.Random(seed)
    padded, plain = (Decoder(LLAMA, kv_blocks=BLOCKS, block_size=BLOCK, seed=seed % 7) for _ in range(2))
    graphs = DecodeGraphs(padded, sorted(sizes), max_context=40)
    graphs.capture()
    pool = list(range(BLOCKS))
    rng.shuffle(pool)
    blocks = [[pool.pop() for _ in range(16)] for _ in range(8)]
    known = [[rng.randrange(97) for _ in range(rng.randint(1, 45))] for _ in range(8)]
    cached = [0] * 8
    rows: dict[int, int] = {}
    for _ in range(14):
        now = rng.sample(range(8), rng.randint(1, 8))
        if rng.random() < 0.8:  # a step that only decodes
            now = [i for i in now if cached[i] == len(known[i]) - 1] or now
        batches: list[list[SequenceInput]] = [[], []]
        for i in now:
            tokens = known[i][cached[i] :]
            table = blocks[i][: -(-len(known[i]) // BLOCK)]
            row = rows.get(i) if unseen and len(tokens) == 1 else None
            batches[0].append(SequenceInput([0] if row is not None else tokens, cached[i], table, previous=row))
            batches[1].append(SequenceInput(tokens, cached[i], table))
        step = padded.launch(batches[0])
        fits = len(now) <= max(sizes) and all(len(one.tokens) == 1 and one.start < 40 for one in batches[0])
        assert step.padded_to == (min(size for size in sizes if size >= len(now)) if fits else None)
        assert not step.graph
        if step.padded_to is not None:
            assert_holds(graphs, padded, batches[0], step.padded_to)
        tokens_now = step.tokens()
        assert plain.step(batches[1]) == tokens_now
        for i, token in zip(now, tokens_now, strict=True):
            cached[i] = len(known[i])
            known[i].append(token)
        rows = {i: row for row, i in enumerate(now)}
    for cache, expected in zip(padded.caches, plain.caches, strict=True):
        torch.testing.assert_close(cache[: BLOCKS * BLOCK], expected[: BLOCKS * BLOCK])


def test_padding_writes_to_no_block_of_a_sequence() -> None:
    decoder = Decoder(LLAMA, kv_blocks=BLOCKS, block_size=BLOCK)
    DecodeGraphs(decoder, [8]).capture()
    for cache in decoder.caches:
        cache.normal_()
    before = [cache.clone() for cache in decoder.caches]
    assert decoder.launch([SequenceInput([5], 6, [3, 9])]).padded_to == 8
    for cache, was in zip(decoder.caches, before, strict=True):
        changed = (cache != was).flatten(1).any(1).nonzero().flatten().tolist()
        assert changed == [9 * BLOCK + 2, BLOCKS * BLOCK]
    assert decoder.padding_block == BLOCKS


def test_rows_follow_blocks_that_the_caller_changes_in_place() -> None:
    padded, plain = (Decoder(LLAMA, kv_blocks=BLOCKS, block_size=BLOCK) for _ in range(2))
    graphs = DecodeGraphs(padded, [2])
    graphs.capture()
    table = [7]
    token = 3
    for start in range(12):
        if start == 6:  # the block moves
            for decoder in (padded, plain):
                for cache in decoder.caches:
                    cache[50 * BLOCK : 51 * BLOCK] = cache[7 * BLOCK : 8 * BLOCK]
                    cache[7 * BLOCK : 8 * BLOCK] = 9.0
            table[0] = 50
        if start and start % BLOCK == 0:
            table.append(20 + start)
        batch = [SequenceInput([token], start, table)]
        token = padded.step(batch)[0]
        assert_holds(graphs, padded, batch, 2)
        assert plain.step(batch) == [token]


def test_without_a_gpu_nothing_is_taken() -> None:
    decoder = Decoder(LLAMA, kv_blocks=8, block_size=BLOCK)
    assert DecodeGraphs(decoder, [1, 2, 4]).capture() == [Capture(1, 0.0, 0), Capture(2, 0.0, 0), Capture(4, 0.0, 0)]


@pytest.mark.parametrize("sizes", [[], [0, 1], [2, 2], [4, 2], [1, 16385]])
def test_sizes_that_do_not_rise_are_refused(sizes: list[int]) -> None:
    decoder = Decoder(replace(LLAMA, layers=1), kv_blocks=8, block_size=BLOCK)
    with pytest.raises(UserError, match="expected rising numbers from 1 to 16384"):
        DecodeGraphs(decoder, sizes)
