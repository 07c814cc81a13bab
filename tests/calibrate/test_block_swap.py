"""Blocks that left for host memory come back as they were, wherever they come back to."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from calibrate import block_swap
from calibrate.block_swap import BlockSwap
from calibrate.decoder import Decoder, SequenceInput
from calibrate.model import ModelShape

LLAMA = ModelShape("small", 32, 3, 4, 2, 8, 48, 97, max_context=256, dtype_bytes=4)
BLOCK = 4
BLOCKS = 40


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1), st.integers(1, 4))
def test_decode_goes_on_after_a_swap(seed: int, sequences: int) -> None:
    """Swap out, overwrite everything, swap in to other blocks: the tokens are those of a decoder that never swapped."""
    rng = random.Random(seed)
    swapped, stayed = (Decoder(LLAMA, kv_blocks=BLOCKS, block_size=BLOCK, seed=seed % 5) for _ in range(2))
    swap = BlockSwap(swapped, host_blocks=BLOCKS)
    pool, host = list(range(BLOCKS)), list(range(BLOCKS))
    rng.shuffle(pool)
    if rng.random() < 0.5:
        rng.shuffle(host)
    prompts = [[rng.randrange(97) for _ in range(rng.randint(1, 20))] for _ in range(sequences)]
    blocks = [[pool.pop() for _ in range(8)] for _ in prompts]
    batch = [SequenceInput(prompt, 0, of_sequence) for prompt, of_sequence in zip(prompts, blocks, strict=True)]
    tokens = swapped.step(batch)
    assert stayed.step(batch) == tokens

    places = [[host.pop(0) for _ in of_sequence] for of_sequence in blocks]
    for of_sequence, place in zip(blocks, places, strict=True):
        out = swap.swap_out(of_sequence, place)
        assert out.bytes == len(place) * BLOCK * LLAMA.kv_bytes_per_token()
        out.before_compute()
        out.wait()
    for cache in swapped.caches:
        cache.fill_(torch.nan)
    moved = [list(of_sequence) for of_sequence in blocks]
    rng.shuffle(moved)
    for of_sequence, place in zip(moved, places, strict=True):
        rng.shuffle(of_sequence)
        assert swap.swap_in(place, of_sequence).bytes == len(place) * BLOCK * LLAMA.kv_bytes_per_token()

    for step in range(3):
        at = [len(prompt) + step for prompt in prompts]
        there = [SequenceInput([token], start, row) for token, start, row in zip(tokens, at, moved, strict=True)]
        here = [SequenceInput([t], start, one.blocks) for t, start, one in zip(tokens, at, batch, strict=True)]
        tokens = swapped.step(there)
        assert stayed.step(here) == tokens


def test_more_blocks_than_fit_the_staging_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = Decoder(LLAMA, kv_blocks=BLOCKS, block_size=BLOCK)
    swap = BlockSwap(decoder, host_blocks=20)
    monkeypatch.setattr(block_swap, "_STAGING_BYTES", 3 * swap.block_bytes + 1)
    for cache in decoder.caches:
        cache.normal_()
    before = [cache.view(BLOCKS + 1, -1).clone() for cache in decoder.caches]
    device_blocks, host_blocks = [30, 2, 3, 4, 9, 8, 1, 0], [0, 1, 2, 5, 6, 7, 8, 19]
    swap.swap_out(device_blocks, host_blocks)
    for cache in decoder.caches:
        cache.zero_()
    swap.swap_in(host_blocks, device_blocks)
    for cache, was in zip(decoder.caches, before, strict=True):
        blocks = cache.view(BLOCKS + 1, -1)
        assert torch.equal(blocks[device_blocks], was[device_blocks])
        assert blocks.count_nonzero() == was[device_blocks].numel()


def test_lists_of_unequal_length_are_refused() -> None:
    swap = BlockSwap(Decoder(LLAMA, kv_blocks=8, block_size=BLOCK), host_blocks=8)
    with pytest.raises(ValueError, match="2 device and 3 host blocks"):
        swap.swap_out([1, 2], [1, 2, 3])
    with pytest.raises(ValueError, match="1 device and 0 host blocks"):
        swap.swap_in([], [1])


def test_nothing_is_swapped_where_nothing_is_asked() -> None:
    swap = BlockSwap(Decoder(LLAMA, kv_blocks=8, block_size=BLOCK), host_blocks=0)
    assert swap.swap_out([], []).bytes == swap.swap_in([], []).bytes == 0
