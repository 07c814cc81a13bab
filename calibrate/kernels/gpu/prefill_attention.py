"""Causal attention of prefills over the paged cache: whole prompts, chunks, and tails behind a cached prefix alike.

A program holds one KV head's queries of a few neighbouring tokens and walks through what they see of the context.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from calibrate.kernels.gpu.attended_tile import attended_tile
from calibrate.kernels.gpu.early_start import await_previous, let_next_start, starts_early
from calibrate.kernels.gpu.launcher import Launcher, power_of_two
from calibrate.kernels.gpu.paged_plan import PREFILL_ROWS, PagedPlan


def prefill_attention(
    query: torch.Tensor, cache: torch.Tensor, block_size: int, plan: PagedPlan, out: torch.Tensor
) -> None:
    """Fill the prefills' rows of `out` [T, heads·head_dim]; query [T, heads, head_dim], its tokens may lie apart."""
    heads, head_dim = query.shape[1:]
    kv_heads = cache.shape[2]
    wide = query.element_size() > 2
    early = starts_early(query.device)
    _launcher(
        (len(plan.tiles), kv_heads, 1),
        (
            query,
            cache,
            plan.table,
            plan.query_starts,
            plan.contexts,
            plan.tiles,
            out,
            math.log2(math.e) / math.sqrt(head_dim),
            query.stride(0),
            plan.table.stride(0),
        ),
        (
            heads // kv_heads,
            kv_heads,
            head_dim,
            PREFILL_ROWS,
            max(16, power_of_two(head_dim)),
            block_size,
            32 if wide else 64,
            early,
        ),
        # On an H100, 8192 tokens of bfloat16: 1.24 ms with 4 warps, 1.56 ms with 8.
        num_warps=8 if wide else 4,
        num_stages=2 if wide else 3,
        launch_pdl=early,
    )


@triton.jit(do_not_specialize=["table", "query_starts", "contexts", "tiles", "table_stride"])
def _prefill_attention(
    query: tl.tensor,
    cache: tl.tensor,
    table: tl.tensor,
    query_starts: tl.tensor,
    contexts: tl.tensor,
    tiles: tl.tensor,
    out: tl.tensor,
    scale: tl.tensor,
    query_stride: tl.tensor,
    table_stride: tl.tensor,
    GROUP: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    TOKENS: tl.constexpr,
    EARLY: tl.constexpr,
) -> None:
    let_next_start(EARLY)
    await_previous(EARLY)
    QUERIES: tl.constexpr = ROWS // GROUP
    kv_head = tl.program_id(1)
    sequence = tl.load(tiles + 2 * tl.program_id(0))
    first = tl.load(tiles + 2 * tl.program_id(0) + 1)
    begin = tl.load(query_starts + sequence)
    new = tl.load(query_starts + sequence + 1) - begin
    cached = tl.load(contexts + sequence) - new

    rows = tl.arange(0, ROWS)
    columns = tl.arange(0, COLUMNS)
    queries = first + rows // GROUP
    inside = (rows < QUERIES * GROUP) & (queries < new)
    mask = inside[:, None] & (columns < HEAD_DIM)[None, :]
    heads = kv_head * GROUP + rows % GROUP
    tokens = (begin + queries).to(tl.int64)
    cells = query + tokens[:, None] * query_stride + heads[:, None] * HEAD_DIM + columns[None, :]
    tile = tl.load(cells, mask=mask, other=0.0)

    # A row of no query sees one token, so that its softmax is one of something.
    reach = tl.where(inside, cached + queries + 1, 1)
    end = cached + tl.minimum(first + QUERIES, new)
    seen_by_all = (cached + first + 1) // TOKENS * TOKENS
    keys = cache + kv_head * HEAD_DIM
    blocks = table + sequence * table_stride
    attended = tl.zeros([ROWS, COLUMNS], tl.float32)
    top = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    for start in range(0, seen_by_all, TOKENS):
        attended, top, total = attended_tile(
            tile, reach, attended, top, total, keys, blocks, start, end, scale,
            KV_HEADS, HEAD_DIM, COLUMNS, BLOCK_SIZE, TOKENS, MASKED=False,
        )  # fmt: skip
    for start in range(seen_by_all, end, TOKENS):
        attended, top, total = attended_tile(
            tile, reach, attended, top, total, keys, blocks, start, end, scale,
            KV_HEADS, HEAD_DIM, COLUMNS, BLOCK_SIZE, TOKENS, MASKED=True,
        )  # fmt: skip
    attended /= total[:, None]
    target = out + tokens[:, None] * (KV_HEADS * GROUP * HEAD_DIM) + heads[:, None] * HEAD_DIM + columns[None, :]
    tl.store(target, attended.to(out.dtype.element_ty), mask=mask)


_launcher = Launcher(_prefill_attention)
