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
from calibrate.kernels.gpu.early_start import await_previous, let_next_start, starts_early
from calibrate.kernels.gpu.launcher import Launcher, power_of_two
from calibrate.kernels.gpu.paged_plan import PagedPlan

_MERGED = 8  # parts that are merged at a time


def decode_attention(
    query: torch.Tensor, cache: torch.Tensor, block_size: int, plan: PagedPlan, out: torch.Tensor
) -> None:
    """Fill the decodes' rows of `out` [T, heads·head_dim]; query [T, heads, head_dim], its tokens may lie apart."""
    heads, head_dim = query.shape[1:]
    kv_heads = cache.shape[2]
    group = heads // kv_heads
    sequences, splits = plan.decodes, plan.splits
    columns = max(16, power_of_two(head_dim))
    wide = query.element_size() > 2
    tokens = 32 if wide else 64
    early = starts_early(query.device)
    parts = sums = out
    if splits > 1:
        parts = out.new_empty(sequences, splits, heads, head_dim, dtype=torch.float32)
        sums = out.new_empty(sequences, splits, heads, dtype=torch.float32)
    # The heads of one sequence run side by side: their keys and values are neighbours in memory.
    _attend(
        (kv_heads, sequences, splits),
        (
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
        ),
        (group, kv_heads, head_dim, max(16, power_of_two(group)), columns, block_size, tokens, splits == 1, early),
        num_warps=4,
        num_stages=3,
        launch_pdl=early,
    )
    if splits > 1:
        _merge(
            (sequences, heads, 1),
            (parts, sums, plan.contexts, out, splits),
            (heads, head_dim, columns, _MERGED, tokens, early),
            num_warps=4,
            launch_pdl=early,
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
    EARLY: tl.constexpr,
) -> None:
    let_next_start(EARLY)
    await_previous(EARLY)
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
    MERGED: tl.constexpr,
    TOKENS: tl.constexpr,
    EARLY: tl.constexpr,
) -> None:
    let_next_start(EARLY)
    await_previous(EARLY)
    sequence = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    context = tl.load(contexts + sequence)
    used = tl.cdiv(context, _part_tokens(context, splits, TOKENS))
    columns = tl.arange(0, COLUMNS)
    merged = tl.zeros([COLUMNS], tl.float32)
    top = tl.full([], float("-inf"), tl.float32)
    total = tl.full([], 0.0, tl.float32)
    # Only the parts that there are: the others would be read for nothing.
    for first in range(0, used, MERGED):
        part = first + tl.arange(0, MERGED)
        inside = part < used
        row = (sequence * splits + part) * HEADS + head
        sum_of_part = tl.load(sums + row, mask=inside, other=float("-inf"))
        mask = inside[:, None] & (columns < HEAD_DIM)[None, :]
        attended = tl.load(parts + row[:, None] * HEAD_DIM + columns[None, :], mask=mask, other=0.0)
        new_top = tl.maximum(top, tl.max(sum_of_part, axis=0))
        weight = tl.exp2(sum_of_part - new_top)
        shrink = tl.exp2(top - new_top)
        merged = merged * shrink + tl.sum(attended * weight[:, None], axis=0)
        total = total * shrink + tl.sum(weight, axis=0)
        top = new_top
    target = out + (sequence * HEADS + head) * HEAD_DIM + columns
    tl.store(target, (merged / total).to(out.dtype.element_ty), mask=columns < HEAD_DIM)


_attend = Launcher(_attend_part)
_merge = Launcher(_merge_parts)
