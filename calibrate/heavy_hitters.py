"""Attention to those tokens of a sequence that were attended to the most: the others' keys and values are given up.

Zhang et al., "H2O: Heavy-Hitter Oracle for Efficient Generative Inference of Large Language Models" (NeurIPS 2023). Of
each sequence `budget` tokens are kept, by layer and KV head: the last `recent` ones, and of the others those whose
attention, summed over all queries so far and over the query heads that share the KV head, is the largest. A token that
decodes takes the place of the one that is given up; a prompt's chunk attends to all that is kept and to itself, and is
then cut down to the budget. Tokens keep the positions at which they stand in the text.

Attention is computed a sequence at a time, since its weights are needed, which torch's fused kernels do not give.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class KeptSpan:
    """Tokens `first` to `last` (exclusive) of the batch are one sequence's, behind `start` others; it keeps at most as
    many as it has `slots`, filled in their order."""

    first: int
    last: int
    start: int
    slots: torch.Tensor


class HeavyHitters:
    """What the cache slots of one layer hold, by KV head: which token, and how much attention it got."""

    def __init__(self, slots: int, kv_heads: int, budget: int, recent: int, device: torch.device) -> None:
        self._budget, self._recent = budget, recent
        self._scores = torch.zeros(slots, kv_heads, device=device)
        self._positions = torch.zeros(slots, kv_heads, dtype=torch.int64, device=device)
        self._heads = torch.arange(kv_heads, device=device)

    def attend(
        self, query: torch.Tensor, kv: torch.Tensor, cache: torch.Tensor, spans: Sequence[KeptSpan]
    ) -> torch.Tensor:
        """Softmax attention, scale 1/sqrt(head_dim): query [T, heads, head_dim] → [T, heads·head_dim].

        The keys and values kv [T, 2, kv_heads, head_dim] of the new tokens go into cache [slots, 2, kv_heads, head_dim]
        as far as they are kept.
        """
        out = torch.empty_like(query)
        for span in spans:
            rows = slice(span.first, span.last)
            one = self._decode if span.last - span.first == 1 else self._chunk
            out[rows] = one(query[rows], kv[rows], cache, span)
        return out.view(len(query), -1)

    def _decode(self, query: torch.Tensor, kv: torch.Tensor, cache: torch.Tensor, span: KeptSpan) -> torch.Tensor:
        held = min(span.start, self._budget)
        slots = span.slots[: min(held + 1, self._budget)]
        if held < self._budget:
            place = slots[-1].expand(len(self._heads))
        else:
            recent = self._positions[slots] > span.start - self._recent
            place = slots[self._scores[slots].masked_fill(recent, torch.inf).argmin(dim=0)]
        cache[place, :, self._heads] = kv[0].transpose(0, 1)
        self._scores[place, self._heads] = 0.0
        self._positions[place, self._heads] = span.start
        attended, weights = _attention(query, cache[slots], None)
        self._scores[slots] += weights
        return attended

    def _chunk(self, query: torch.Tensor, kv: torch.Tensor, cache: torch.Tensor, span: KeptSpan) -> torch.Tensor:
        new, held = len(query), min(span.start, self._budget)
        before = span.slots[:held]
        everything = torch.cat((cache[before], kv))
        future = torch.full((new, held + new), -torch.inf, device=query.device, dtype=query.dtype).triu_(held + 1)
        attended, weights = _attention(query, everything, future)
        own = torch.arange(span.start, span.start + new, device=query.device)[:, None].expand(-1, len(self._heads))
        positions = torch.cat((self._positions[before], own))
        scores = torch.cat((self._scores[before], torch.zeros_like(weights[held:]))) + weights
        if held + new > self._budget:
            last = span.start + new - 1
            ranks = scores.masked_fill(positions > last - self._recent, torch.inf)
            stays = ranks.topk(self._budget, dim=0).indices.sort(dim=0).values  # [budget, kv_heads]
            everything = torch.stack([everything[stays[:, head], :, head] for head in self._heads.tolist()], dim=2)
            positions, scores = positions.gather(0, stays), scores.gather(0, stays)
        slots = span.slots[: len(everything)]
        cache[slots], self._positions[slots], self._scores[slots] = everything, positions, scores
        return attended


def _attention(query: torch.Tensor, kv: torch.Tensor, bias: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """[T, heads, head_dim] over [keys, 2, kv_heads, head_dim]: the same shape, and the weights that each key got, by KV
    head, summed over queries and the query heads that share it, [keys, kv_heads]."""
    tokens, heads, head_dim = query.shape
    kv_heads = kv.shape[2]
    rows = query.view(tokens, kv_heads, -1, head_dim).permute(1, 2, 0, 3)
    keys, values = kv.permute(1, 2, 0, 3)[:, :, None]
    scores = rows @ keys.transpose(-1, -2) / head_dim**0.5
    weights = (scores if bias is None else scores + bias).softmax(dim=-1)
    attended = (weights @ values).permute(2, 0, 1, 3).reshape(tokens, heads, head_dim)
    return attended, weights.float().sum(dim=(1, 2)).transpose(0, 1)
