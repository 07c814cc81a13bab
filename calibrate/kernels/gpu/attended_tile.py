"""One step of a softmax that never sees all of its scores: a tile of paged keys and values joins what came before.

The running maximum and sum are those of Milakov and Gimelshein (2018); rescaling the output as they move is
FlashAttention's (Dao et al., 2022). Exponentials are powers of two, `scale` holds the logarithm.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def attended_tile(
    query: tl.tensor,  # [ROWS, COLUMNS]
    reach: tl.tensor,  # [ROWS]: how many tokens of the context each row sees
    out: tl.tensor,  # [ROWS, COLUMNS], float32, not yet divided by `total`
    top: tl.tensor,  # [ROWS], the largest score so far
    total: tl.tensor,  # [ROWS], the sum of the weights so far
    keys: tl.tensor,  # where the cache holds the first token's keys of this head
    blocks: tl.tensor,  # this sequence's row of the block table
    start: tl.tensor,  # the first token of the tile
    end: tl.tensor,  # the first token that no row sees
    scale: tl.tensor,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    TOKENS: tl.constexpr,
    MASKED: tl.constexpr,  # some row does not see the whole tile
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    tokens = start + tl.arange(0, TOKENS)
    columns = tl.arange(0, COLUMNS)
    if MASKED:
        # Behind the end the table holds no block, and the cache whatever was there before.
        inside = tokens < end
        block = tl.load(blocks + tokens // BLOCK_SIZE, mask=inside, other=0)
    else:
        inside = tl.full([TOKENS], 1, tl.int1)
        block = tl.load(blocks + tokens // BLOCK_SIZE)
    slots = block.to(tl.int64) * BLOCK_SIZE + tokens % BLOCK_SIZE
    cells = keys + slots[:, None] * (2 * KV_HEADS * HEAD_DIM) + columns[None, :]
    if COLUMNS != HEAD_DIM:
        mask = inside[:, None] & (columns < HEAD_DIM)[None, :]
        key = tl.load(cells, mask=mask, other=0.0)
        value = tl.load(cells + KV_HEADS * HEAD_DIM, mask=mask, other=0.0)
    elif MASKED:
        key = tl.load(cells, mask=inside[:, None], other=0.0)
        value = tl.load(cells + KV_HEADS * HEAD_DIM, mask=inside[:, None], other=0.0)
    else:
        key = tl.load(cells)
        value = tl.load(cells + KV_HEADS * HEAD_DIM)
    scores = tl.dot(query, tl.trans(key), input_precision="ieee") * scale
    if MASKED:
        scores = tl.where(tokens[None, :] < reach[:, None], scores, float("-inf"))
    new_top = tl.maximum(top, tl.max(scores, axis=1))
    weights = tl.exp2(scores - new_top[:, None])
    shrink = tl.exp2(top - new_top)
    total = total * shrink + tl.sum(weights, axis=1)
    out = tl.dot(weights.to(value.dtype), value, out * shrink[:, None], input_precision="ieee")
    return out, new_top, total
