"""The GPU's kernels give what the CPU's give: Triton's interpreter runs them over random shapes in float32.

The interpreter is chosen when Triton is first imported, for the whole process. So this file chooses it before that, and
leaves a process that sees a GPU alone: there CUDA_VISIBLE_DEVICES= hides it.
"""

import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

if torch.cuda.is_available():
    pytest.skip("Triton's interpreter would take the GPU's kernels", allow_module_level=True)
os.environ["TRITON_INTERPRET"] = "1"
pytest.importorskip("triton")

from calibrate.decode_graphs import DecodeGraphs
from calibrate.decoder import Decoder, SequenceInput
from calibrate.kernels import backend
from calibrate.kernels.attention import AttentionPlan, paged_attention, plan_decodes, plan_prefill
from calibrate.kernels.gpu import skinny_linear
from calibrate.kernels.gpu.paged_plan import plan_paged
from calibrate.kernels.linear import gate_up_product, product
from calibrate.kernels.qk_norm import qk_norm
from calibrate.kernels.rmsnorm import add_rmsnorm
from calibrate.kernels.rotary_write import rotary_write
from calibrate.kernels.sampling import greedy
from calibrate.kernels.silu_mul import silu_mul
from calibrate.model import ModelShape

CPU = torch.device("cpu")
LLAMA = ModelShape("small", 32, 2, 6, 2, 16, 48, 97, max_context=200, dtype_bytes=4)


@contextmanager
def triton() -> Iterator[None]:
    """Tensors of the CPU go through the GPU's kernels."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backend, "TRITON_DEVICES", {"cuda", "cpu"})
        yield


def assert_equal(kernel: Callable[[], list[torch.Tensor]]) -> None:
    """The results of the CPU's kernel and the GPU's; `kernel` makes its own inputs, each time the same."""
    torch.manual_seed(1)
    results = kernel()
    with triton():
        torch.manual_seed(1)
        for expected, got in zip(results, kernel(), strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


@settings(max_examples=15)
@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 300))
def test_add_rmsnorm(parts: int, tokens: int, size: int) -> None:
    def kernel() -> list[torch.Tensor]:
        x, residual, weight = torch.randn(parts, tokens, size), torch.randn(tokens, size), torch.randn(size)
        return [add_rmsnorm(x, residual, weight, 1e-5), residual, x]

    assert_equal(kernel)


@settings(max_examples=15)
@given(st.integers(1, 5), st.integers(1, 2500))
def test_silu_mul(tokens: int, size: int) -> None:
    def kernel() -> list[torch.Tensor]:
        gate_up = torch.randn(tokens, 2 * size)
        return [silu_mul(gate_up), gate_up]

    assert_equal(kernel)


@settings(max_examples=25)
@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 3), st.integers(1, 8), st.integers(1, 40))
def test_rotary_write_turns_queries_and_keys_and_fills_the_cache(
    parts: int, tokens: int, kv_heads: int, group: int, half: int
) -> None:
    def kernel() -> list[torch.Tensor]:
        heads, head_dim = kv_heads * group, 2 * half
        cos, sin = torch.randn(2, tokens, 1, head_dim)
        cache = torch.randn(2 * tokens, 2, kv_heads, head_dim)
        qkv = torch.randn(parts, tokens, heads + 2 * kv_heads, head_dim)
        return [rotary_write(qkv, cos, sin, cache, torch.randperm(2 * tokens)[:tokens]), cache]

    assert_equal(kernel)


@settings(max_examples=15)
@given(st.integers(1, 64), st.integers(1, 3), st.integers(1, 8), st.booleans())
def test_a_product_of_few_tokens_is_the_sum_of_its_parts(tokens: int, rows: int, depths: int, in_parts: bool) -> None:
    def kernel() -> list[torch.Tensor]:
        x, weight = torch.randn(tokens, 128 * depths), torch.randn(64 * rows, 128 * depths) * 0.05
        return [product(x, weight, in_parts=in_parts).sum(0)]

    tiling = skinny_linear.tiling_of(tokens)
    assert tiling is not None
    with triton():
        parts = len(product(torch.zeros(tokens, 128 * depths), torch.zeros(64 * rows, 128 * depths), in_parts=in_parts))
    tiles = 128 * depths // tiling.depth
    assert parts == (tiles & -tiles if in_parts else 1)  # there are few rows: as many parts as divide the length
    assert_equal(kernel)


@settings(max_examples=15)
@given(st.integers(1, 64), st.integers(1, 2), st.integers(1, 3))
def test_a_gated_product_of_few_tokens_is_activated(tokens: int, rows: int, depths: int) -> None:
    def kernel() -> list[torch.Tensor]:
        x, gate_up = torch.randn(tokens, 128 * depths), torch.randn(128 * rows, 128 * depths) * 0.05
        y, activated = gate_up_product(x, gate_up)
        return [y if activated else silu_mul(y)]

    with triton():
        assert gate_up_product(torch.zeros(tokens, 128), torch.zeros(128, 128))[1]
    assert_equal(kernel)


def test_a_weight_that_is_not_whole_tiles_and_a_crowd_of_tokens_take_the_plain_product() -> None:
    whole = torch.zeros(128, 128)
    assert skinny_linear.fits(64, whole)
    assert not skinny_linear.fits(65, whole)
    assert not skinny_linear.fits(1, torch.zeros(130, 128))
    assert not skinny_linear.fits(1, torch.zeros(128, 100))


@settings(max_examples=15)
@given(st.integers(1, 4), st.integers(1, 9000), st.integers(1, 50))
def test_greedy_takes_the_first_of_the_largest(sequences: int, vocab: int, values: int) -> None:
    torch.manual_seed(0)
    logits = torch.randint(-values, values, (sequences, vocab)).float()
    with triton():
        tokens = greedy(logits)
    assert tokens.tolist() == [row.index(max(row)) for row in logits.tolist()]


@settings(max_examples=15)
@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 4), st.integers(1, 130))
def test_qk_norm(tokens: int, kv_heads: int, group: int, head_dim: int) -> None:
    def kernel() -> list[torch.Tensor]:
        heads = kv_heads * group
        qkv, norms = torch.randn(tokens, heads + 2 * kv_heads, head_dim), torch.randn(2, head_dim)
        qk_norm(qkv, norms[0], norms[1], heads, kv_heads, 1e-6)
        return [qkv]

    assert_equal(kernel)


@settings(max_examples=15)
@given(
    st.lists(st.integers(1, 330), max_size=4),
    st.lists(st.tuples(st.integers(2, 150), st.integers(0, 200)), max_size=2),
    st.sampled_from([1, 2, 3, 4, 7]),
    st.integers(1, 3),
    st.sampled_from([8, 24, 64, 80, 128]),
    st.sampled_from([1, 4, 16, 48]),
    st.sampled_from([1, 2, 5, 64]),
    st.sampled_from([torch.float32, torch.float16]),  # the interpreter cannot multiply bfloat16
)
@example([70, 1], [(33, 70), (65, 0)], 4, 1, 8, 16, 64, torch.float32)  # a single query in the last tile
def test_paged_attention_of_decodes_and_chunks_together(
    decodes: list[int],
    chunks: list[tuple[int, int]],
    group: int,
    kv_heads: int,
    head_dim: int,
    block_size: int,
    splits: int,
    dtype: torch.dtype,
) -> None:
    """Contexts end anywhere in a tile; what no sequence wrote is NaN, so a kernel that reads it is found out."""
    if not decodes and not chunks:
        return
    torch.manual_seed(0)
    decodes.sort(reverse=True)
    news = [1] * len(decodes) + [new for new, _ in chunks]
    contexts = decodes + [new + cached for new, cached in chunks]
    pool = list(range(sum(-(-context // block_size) for context in contexts) + 2))
    random.Random(0).shuffle(pool)
    blocks = [[pool.pop() for _ in range(-(-context // block_size))] for context in contexts]
    cache = torch.full(((len(pool) + sum(map(len, blocks))) * block_size, 2, kv_heads, head_dim), torch.nan)
    for context, of_sequence in zip(contexts, blocks, strict=True):
        slots = [of_sequence[i // block_size] * block_size + i % block_size for i in range(context)]
        cache[slots] = torch.randn(context, 2, kv_heads, head_dim)
    heads = group * kv_heads
    qkv = torch.randn(sum(news), heads + 2 * kv_heads, head_dim)
    plan = plan_paged(news, contexts, blocks, heads=heads, kv_heads=kv_heads, block_size=block_size, device=CPU)
    plan = replace(plan, splits=splits)
    qkv, cache = qkv.to(dtype), cache.to(dtype)
    got = paged_attention(qkv[:, :heads], cache, block_size, plan)

    tiles = plan_decodes(
        decodes, blocks[: len(decodes)], block_size=block_size, tile_tokens=512, device=CPU, dtype=torch.float32
    )
    spans, first = [], len(decodes)
    for (new, cached), of_sequence in zip(chunks, blocks[len(decodes) :], strict=True):
        spans.append(plan_prefill(first, new, cached, of_sequence, device=CPU, dtype=torch.float32))
        first += new
    qkv, cache = qkv.float(), cache.float().nan_to_num()
    expected = paged_attention(qkv[:, :heads], cache, block_size, AttentionPlan(tiles, spans))
    rounding = 1e-5 if dtype == torch.float32 else 4e-3
    torch.testing.assert_close(got.float(), expected, rtol=rounding, atol=rounding)


@settings(max_examples=4)
@given(st.integers(0, 2**32 - 1), st.booleans(), st.booleans())
def test_a_decoder_on_these_kernels_gives_the_cpus_tokens(seed: int, qk_norm: bool, graphs: bool) -> None:
    """Prompts in chunks and decodes together, decode steps padded as they are captured, tokens left on the device."""
    rng = random.Random(seed)
    model = replace(LLAMA, qk_norm=qk_norm)
    cpu = Decoder(model, kv_blocks=4 * 12, block_size=8, seed=seed % 7)
    with triton():
        gpu = Decoder(model, kv_blocks=4 * 12, block_size=8, seed=seed % 7)
        if graphs:
            DecodeGraphs(gpu, [2, 4], max_context=75).capture()
    pool = list(range(4 * 12))
    rng.shuffle(pool)
    known = [[rng.randrange(97) for _ in range(rng.choice([1, 3, 20, 70]))] for _ in range(4)]
    blocks = [[pool.pop() for _ in range(12)] for _ in known]
    cached = [0] * 4
    rows: dict[int, int] = {}
    padded = 0
    for step in range(7):
        now = rng.sample(range(4), rng.randint(1, 4)) if step < 3 else rng.sample(range(4), 3)
        on_gpu, on_cpu = [], []
        for i in now:
            length = len(known[i]) - cached[i]
            tokens = known[i][cached[i] : cached[i] + (rng.randint(1, length) if step < 2 else length)]
            unseen = i in rows and len(tokens) == length == 1
            on_gpu.append(SequenceInput([0] if unseen else tokens, cached[i], blocks[i], rows[i] if unseen else None))
            on_cpu.append(SequenceInput(tokens, cached[i], blocks[i]))
        with triton():
            launched = gpu.launch(on_gpu)
            padded += launched.padded_to is not None
            got = launched.tokens()
        assert got == cpu.step(on_cpu)
        rows = {}
        for row, (i, one, token) in enumerate(zip(now, on_cpu, got, strict=True)):
            cached[i] += len(one.tokens)
            if cached[i] == len(known[i]):
                known[i].append(token)
                rows[i] = row
    assert graphs or not padded
