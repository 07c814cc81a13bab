"""Attention to the first tokens of a sequence and to its last ones, whose keys and values lie in a ring of blocks.

Xiao et al., "Efficient Streaming Language Models with Attention Sinks" (ICLR 2024): the first tokens, the sinks, are
kept beside a sliding window. Tokens keep the positions at which they stand in the text; the paper counts them anew
within the cache.

A sequence holds the blocks of its sinks and one block more than its window is long. A token's keys and values go where
those lay that have left the window. So a prompt's tokens, which need what lay there, read it before they write. They
read the sinks after that: another sequence of the same step may only now compute those that both have.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention

from calibrate.kernels.attention import AttentionPlan, DecodeTile, paged_attention

# Queries of a prompt that attend together: the more, the more keys are computed that some of them do not see.
_LEAST_TILE = 64


@dataclass(frozen=True)
class QueryTile:
    """Queries `first` to `last` (exclusive) of a span; which of its keys any of them sees, and the additive bias."""

    first: int
    last: int
    columns: torch.Tensor
    bias: torch.Tensor


@dataclass(frozen=True)
class WindowSpan:
    """Tokens `first` to `last` (exclusive) of the batch are a prompt's; its keys are those in the cache's slots `sinks`
    and `old`, then its own."""

    first: int
    last: int
    sinks: torch.Tensor
    old: torch.Tensor
    tiles: list[QueryTile]


@dataclass(frozen=True)
class WindowPlan:
    """How a packed batch attends: `decodes` sequences first. Keys and values of the tokens `written` go to `slots`."""

    decodes: int
    tiles: AttentionPlan
    spans: list[WindowSpan]
    written: torch.Tensor
    slots: torch.Tensor


class Window:
    """The rules of one window, in tokens; all of them whole blocks."""

    def __init__(self, sinks: int, window: int, block_size: int, tile_tokens: int, dtype: torch.dtype) -> None:
        """`tile_tokens`: keys that one decode tile gathers at most."""
        self._sinks, self._window, self._size = sinks, window, block_size
        self._ring = window + block_size
        self._tile_tokens = tile_tokens
        self._dtype = dtype

    def plan(self, starts: Sequence[int], new: Sequence[int], blocks: Sequence[Sequence[int]]) -> WindowPlan:
        """Of packed sequences, those that decode first and by falling context: their cached and new tokens."""
        decodes = sum(1 for tokens in new if tokens == 1)
        tiles = self._decode_tiles(starts[:decodes], blocks[:decodes])
        spans: list[WindowSpan] = []
        written: list[np.ndarray] = [np.arange(decodes)]
        slots: list[np.ndarray] = [
            self._slots(np.array([start]), of) for start, of in zip(starts[:decodes], blocks[:decodes], strict=True)
        ]
        first = decodes
        for start, tokens, of in zip(starts[decodes:], new[decodes:], blocks[decodes:], strict=True):
            spans.append(self._span(first, start, tokens, of))
            positions = np.arange(start, start + tokens)
            # Of two tokens that would lie in one place only the later is still seen.
            stays = (positions < self._sinks) | (positions >= start + tokens - self._ring)
            written.append(first + np.flatnonzero(stays))
            slots.append(self._slots(positions[stays], of))
            first += tokens
        return WindowPlan(
            decodes,
            AttentionPlan(tiles, []),
            spans,
            torch.from_numpy(np.concatenate(written)),
            torch.from_numpy(np.concatenate([np.zeros(0, np.int64), *slots])),
        )

    def _decode_tiles(self, starts: Sequence[int], blocks: Sequence[Sequence[int]]) -> list[DecodeTile]:
        tiles = []
        first = 0
        while first < len(starts):
            width = self._blocks_held(starts[first] + 1)
            last = min(len(starts), first + max(1, self._tile_tokens // (width * self._size)))
            rows = [list(row[:width]) + [0] * (width - len(row[:width])) for row in blocks[first:last]]
            held = np.stack([self._held(start + 1, width) for start in starts[first:last]])
            seen = self._sees(np.array(starts[first:last])[:, None], held)
            tiles.append(DecodeTile(first, last, torch.tensor(rows), self._bias(seen)[:, None, None]))
            first = last
        return tiles

    def _span(self, first: int, start: int, tokens: int, blocks: Sequence[int]) -> WindowSpan:
        width = self._blocks_held(start)
        held = self._held(start, width)
        old = np.flatnonzero(self._sees(np.array(start), held))
        keys = np.concatenate([held[old], np.arange(start, start + tokens)])
        numbers = np.array(blocks[:width], np.int64)
        old_slots = numbers[old // self._size] * self._size + old % self._size
        tiles = []
        length = max(_LEAST_TILE, self._window // 2)
        for begin in range(0, tokens, length):
            end = min(begin + length, tokens)
            seen = self._sees(start + np.arange(begin, end)[:, None], keys[None])
            columns = np.flatnonzero(seen.any(axis=0))
            tiles.append(QueryTile(begin, end, torch.from_numpy(columns), self._bias(seen[:, columns])))
        of_sinks = int((old < self._sinks).sum())
        read = torch.from_numpy(old_slots)
        return WindowSpan(first, first + tokens, read[:of_sinks], read[of_sinks:], tiles)

    def _blocks_held(self, context: int) -> int:
        return min(-(-context // self._size), (self._sinks + self._ring) // self._size)

    def _held(self, context: int, width: int) -> np.ndarray:
        """Positions of the tokens that `width` blocks hold of a sequence with `context` cached tokens, in the order of
        the slots; -1 where there is none."""
        slots = np.arange(width * self._size)
        around = context - 1 - (context - 1 - slots) % self._ring  # the latest that lies `ring` tokens apart from it
        positions = np.where(slots < self._sinks, slots, around)
        return np.where((positions < context) & ((slots < self._sinks) | (around >= self._sinks)), positions, -1)

    def _sees(self, query: np.ndarray, key: np.ndarray) -> np.ndarray:
        """Whether a token attends to another, by their positions."""
        return (key >= 0) & (key <= query) & ((key < self._sinks) | (key > query - self._window))

    def _slots(self, positions: np.ndarray, blocks: Sequence[int]) -> np.ndarray:
        place = np.where(positions < self._sinks, positions, self._sinks + (positions - self._sinks) % self._ring)
        return np.array(blocks, np.int64)[place // self._size] * self._size + place % self._size

    def _bias(self, seen: np.ndarray) -> torch.Tensor:
        hidden = torch.from_numpy(~seen)
        return torch.zeros(seen.shape, dtype=self._dtype).masked_fill_(hidden, -torch.inf)


Unpack = Callable[[torch.Tensor], torch.Tensor] | None


def write(
    cache: torch.Tensor, kv: torch.Tensor, stored: torch.Tensor, plan: WindowPlan, unpack: Unpack
) -> list[torch.Tensor]:
    """Write the new keys and values; returns what every span reads, each [sinks + old + new, 2, kv_heads, head_dim].

    kv [T, 2, kv_heads, head_dim] are the new ones as they are read, `stored` [T, 2, kv_heads, …] as they are kept.
    """
    before = [cache.index_select(0, span.old) for span in plan.spans]
    cache.index_copy_(0, plan.slots, stored.index_select(0, plan.written))
    found = []
    for span, old in zip(plan.spans, before, strict=True):
        cached = torch.cat((cache.index_select(0, span.sinks), old))
        found.append(torch.cat((unpack(cached) if unpack else cached, kv[span.first : span.last])))
    return found


def window_attention(
    query: torch.Tensor,
    cache: torch.Tensor,
    of_spans: Sequence[torch.Tensor],
    block_size: int,
    plan: WindowPlan,
    unpack: Unpack,
) -> torch.Tensor:
    """Softmax attention, scale 1/sqrt(head_dim): query [T, heads, head_dim] → [T, heads·head_dim].

    `cache` [slots, 2, kv_heads, …] holds the new tokens already; `of_spans` is what `write` found.
    """
    heads, head_dim = query.shape[1:]
    kv_heads = cache.shape[2]
    group = heads // kv_heads
    out = query.new_empty(len(query), heads * head_dim)
    if plan.decodes:
        out[: plan.decodes] = paged_attention(query[: plan.decodes], cache, block_size, plan.tiles, unpack)
    for span, kv in zip(plan.spans, of_spans, strict=True):
        rows = query[span.first : span.last].view(-1, kv_heads, group, head_dim).permute(1, 2, 0, 3)
        for tile in span.tiles:
            keys, values = (
                kv.index_select(0, tile.columns).permute(1, 2, 0, 3)[:, :, None].expand(-1, -1, group, -1, -1)
            )
            attended = scaled_dot_product_attention(
                rows[:, :, tile.first : tile.last], keys, values, attn_mask=tile.bias
            )
            to = span.first + tile.first
            out[to : to + tile.last - tile.first] = attended.permute(2, 0, 1, 3).reshape(tile.last - tile.first, -1)
    return out
