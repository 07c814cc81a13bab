"""Attention of one new token a sequence over the paged cache: each context is cut into parts, which are then merged.

The parts' softmaxes are merged by their logarithms' sums (flash decoding; Dao et al., 2023). How many programs run
does not depend on the contexts: a part that has nothing to do ends at once.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from calibrate.kernels.gpu.attended_tile import attended_tile
from calibrate.kernels.gpu.paged_plan import MAX_SPLITS, PagedPlan


def decode_attention(
    query: torch.Tensor, cache: torch.Tensor, block_size: int, plan: PagedPlan, out: torch.Tensor
) -> None:
    """Fill the decodes' rows of `out` [T, heads·head_dim]; query [T, heads, head_dim], its tokens may lie apart."""
    heads, head_dim = query.shape[1:]
    kv_heads = cache.shape[2]
    group = heads // kv_heads
    sequences, splits = plan.decodes, plan.splits
    columns = max(16, triton.next_power_of_2(head_dim))
    wide = query.element_size() > 2
    tokens = 32 if wide else 64
    parts = sums = out
    if splits > 1:
        parts = out.new_empty(sequences, splits, heads, head_dim, dtype=torch.float32)
        sums = out.new_empty(sequences, splits, heads, dtype=torch.float32)
    # The heads of one sequence run side by side: their keys and values are neighbours in memory.
    _attend_part[(kv_heads, sequences, splits)](
        query,
        cache,
        plan.table,
        plan.contexts,
        out,
        parts,
        sums,
        math.log2(math.e) / math.sqrt(head_dim),
        query.stride(0),
        plan.table.stride(0),
        splits,
        GROUP=group,
        KV_HEADS=kv_heads,
        HEAD_DIM=head_dim,
        ROWS=max(16, triton.next_power_of_2(group)),
        COLUMNS=columns,
        BLOCK_SIZE=block_size,
        TOKENS=tokens,
        WHOLE=splits == 1,
        num_warps=4,
        num_stages=3,
    )
    if splits > 1:
        _merge_parts[(sequences, heads)](
            parts,
            sums,
            plan.contexts,
            out,
            splits,
            HEADS=heads,
            HEAD_DIM=head_dim,
            COLUMNS=columns,
            # Not the number that there are: each would be compiled when it is first met, in the midst of serving.
            SPLITS=MAX_SPLITS,
            TOKENS=tokens,
            num_warps=4,
        )


@triton.jit
def _part_tokens(context: tl.tensor, splits: tl.tensor, TOKENS: tl.constexpr) -> tl.tensor:
    """Tokens of every part but the last: whole tiles, as equal as they go."""
    return tl.cdiv(tl.cdiv(context, TOKENS), splits) * TOKENS


@triton.jit(do_not_specialize=["table", "contexts", "table_stride", "splits"])
def _attend_part(
    query: tl.tensor,
    cache: tl.tensor,
    table: tl.tensor,
    contexts: tl.tensor,
    out: tl.tensor,
    parts: tl.tensor,
    sums: tl.tensor,
    scale: tl.tensor,
    query_stride: tl.tensor,
    table_stride: tl.tensor,
    splits: tl.tensor,
    GROUP: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    TOKENS: tl.constexpr,
    WHOLE: tl.constexpr,  # one part a sequence: nothing to merge
) -> None:
    kv_head = tl.program_id(0)
    sequence = tl.program_id(1)
    part = tl.program_id(2)
    context = tl.load(contexts + sequence)
    length = _part_tokens(context, splits, TOKENS)
    begin = part * length
    if begin >= context:
        return
    end = tl.minimum(begin + length, context)

    rows = tl.arange(0, ROWS)
    columns = tl.arange(0, COLUMNS)
    mask = (rows < GROUP)[:, None] & (columns < HEAD_DIM)[None, :]
    heads = kv_head * GROUP + rows
    cells = query + sequence.to(tl.int64) * query_stride + heads[:, None] * HEAD_DIM + columns[None, :]
    tile = tl.load(cells, mask=mask, other=0.0)

    keys = cache + kv_head * HEAD_DIM
    blocks = table + sequence.to(tl.int64) * table_stride
    reach = tl.full([ROWS], 0, tl.int32) + end
    attended = tl.zeros([ROWS, COLUMNS], tl.float32)
    top = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    for start in range(begin, end, TOKENS):
        attended, top, total = attended_tile(
            tile, reach, attended, top, total, keys, blocks, start, end, scale,
            KV_HEADS, HEAD_DIM, COLUMNS, BLOCK_SIZE, TOKENS, MASKED=True,
        )  # fmt: skip
    attended /= total[:, None]
    if WHOLE:
        target = out + (sequence.to(tl.int64) * KV_HEADS * GROUP + heads)[:, None] * HEAD_DIM + columns[None, :]
        tl.store(target, attended.to(out.dtype.element_ty), mask=mask)
    else:
        row = (sequence.to(tl.int64) * splits + part) * KV_HEADS * GROUP + heads
        tl.store(parts + row[:, None] * HEAD_DIM + columns[None, :], attended, mask=mask)
        tl.store(sums + row, top + tl.log2(total), mask=rows < GROUP)


@triton.jit(do_not_specialize=["contexts", "splits"])
def _merge_parts(
    parts: tl.tensor,
    sums: tl.tensor,
    contexts: tl.tensor,
    out: tl.tensor,
    splits: tl.tensor,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    COLUMNS: tl.constexpr,
    SPLITS: tl.constexpr,
    TOKENS: tl.constexpr,
) -> None:
    sequence = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    context = tl.load(contexts + sequence)
    used = tl.cdiv(context, _part_tokens(context, splits, TOKENS))
    part = tl.arange(0, SPLITS)
    columns = tl.arange(0, COLUMNS)
    inside = part < used
    row = (sequence * splits + part) * HEADS + head
    sum_of_part = tl.load(sums + row, mask=inside, other=float("-inf"))
    weight = tl.exp2(sum_of_part - tl.max(sum_of_part, axis=0))
    mask = inside[:, None] & (columns < HEAD_DIM)[None, :]
    attended = tl.load(parts + row[:, None] * HEAD_DIM + columns[None, :], mask=mask, other=0.0)
    merged = tl.sum(attended * weight[:, None], axis=0) / tl.sum(weight, axis=0)
    target = out + (sequence * HEADS + head) * HEAD_DIM + columns
    tl.store(target, merged.to(out.dtype.element_ty), mask=columns < HEAD_DIM)
