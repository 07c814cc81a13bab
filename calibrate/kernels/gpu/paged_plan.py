"""What paged attention needs to know of a batch: a handful of int32 tensors on the device, made once a step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch

from calibrate.kernels.gpu.splits import splits_on
from calibrate.kernels.gpu.upload import upload

# Rows of a prefill tile: the query heads of one KV head, for as many neighbouring tokens as fit.
PREFILL_ROWS = 128

_MULTIPROCESSORS_OF_NO_GPU = 4  # under Triton's interpreter: several splits at small sizes


@dataclass(frozen=True)
class PagedPlan:
    """A packed batch whose first `decodes` sequences bring one token each; the others are prefills.

    query_starts [S + 1]: where each sequence's tokens begin in the batch; contexts [S]: tokens that each sees in the
    end, its new ones included; table [S, blocks]: its physical blocks, rows may lie apart; tiles [P, 2]: of each
    prefill tile the sequence and the first of its queries. No value of theirs shapes a launch, but for P: a plan
    without prefills may be captured in a graph, and its tensors overwritten between replays.
    """

    query_starts: torch.Tensor
    contexts: torch.Tensor
    table: torch.Tensor
    tiles: torch.Tensor
    decodes: int
    splits: int


def plan_paged(
    new_tokens: Sequence[int],
    contexts: Sequence[int],
    blocks: Sequence[Sequence[int]],
    *,
    heads: int,
    kv_heads: int,
    block_size: int,
    device: torch.device,
) -> PagedPlan:
    """The plan of sequences that bring `new_tokens` each, those with a single one first."""
    decodes = sum(1 for new in new_tokens if new == 1)
    starts = [0]
    for new in new_tokens:
        starts.append(starts[-1] + new)
    table = block_table(contexts, blocks, block_size)
    tiles = _prefill_tiles(new_tokens, contexts, decodes, PREFILL_ROWS // (heads // kv_heads))
    packed = upload(device, starts, contexts, table.ravel(), tiles.ravel())
    return PagedPlan(
        query_starts=packed[0],
        contexts=packed[1],
        table=packed[2].view(table.shape),
        tiles=packed[3].view(-1, 2),
        decodes=decodes,
        splits=decode_splits(decodes, kv_heads, device),
    )


def block_table(contexts: Sequence[int], blocks: Sequence[Sequence[int]], block_size: int) -> np.ndarray:
    """[S, blocks of the longest], int32; a row ends in zeros."""
    widths = [-(-context // block_size) for context in contexts]
    table = np.zeros((len(blocks), max(widths)), np.int32)
    for row, of_sequence, width in zip(table, blocks, widths, strict=True):
        row[:width] = of_sequence[:width]
    return table


def decode_splits(sequences: int, kv_heads: int, device: torch.device) -> int:
    """Into how many parts each decode's context is cut, however long it is: short ones leave some of them empty."""
    return splits_on(sequences, kv_heads, _multiprocessors(device))


def _prefill_tiles(new_tokens: Sequence[int], contexts: Sequence[int], decodes: int, queries: int) -> np.ndarray:
    """[P, 2], the longest to compute first: what is left for the end, when multiprocessors fall idle, is short."""
    tiles = [
        (sequence, first)
        for sequence in range(decodes, len(new_tokens))
        for first in range(0, new_tokens[sequence], queries)
    ]
    tiles.sort(key=lambda tile: new_tokens[tile[0]] - contexts[tile[0]] - tile[1])
    return np.array(tiles, np.int32).reshape(-1, 2)


@cache
def _multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":
        return _MULTIPROCESSORS_OF_NO_GPU
    count: int = torch.cuda.get_device_properties(device).multi_processor_count
    return count
