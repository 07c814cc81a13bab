"""A decoder in which the token decides what it runs: it leaves early, or passes by an MLP."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from calibrate.decoder import Layout, SequenceInput
from calibrate.kernels.attention import AttentionPlan, DecodeTile, PrefillSpan
from calibrate.kernels.linear import product
from calibrate.kernels.rmsnorm import rmsnorm
from calibrate.model import ModelShape
from calibrate.pruned_decoder import PrunedDecoder, Rotation
from calibrate.pruning import Pruning


class RuleDecoder(PrunedDecoder):
    """A `PrunedDecoder` with one of two rules beside what is left out of every token.

    Early exit (Schuster et al., "Confident Adaptive Language Modeling", NeurIPS 2022): after some layers a token leaves
    if the likeliest next token is ahead of the second by `confidence`, both as the model's last norm and head see the
    state. The layers behind take keys and values from that state. Tokens of prompts run whole; in `logits` all leave.

    Similar states (as Jaiswal et al., "FFN-SkipLLM", 2024, measure redundancy): a token passes by an MLP if the one
    that ran before it turned its state little, and then runs the next one whatever comes.
    """

    def __init__(self, model: ModelShape, *, pruning: Pruning, **settings: Any) -> None:
        """As `PrunedDecoder`."""
        super().__init__(model, pruning=pruning, **settings)
        self._all_may_leave = False

    @torch.inference_mode()
    def logits(self, batch: Sequence[SequenceInput]) -> list[torch.Tensor]:
        """The same as every decoder's, where each new token is treated as one that decodes."""
        self._all_may_leave = True
        try:
            return super().logits(batch)
        finally:
            self._all_may_leave = False

    def hidden(self, layout: Layout) -> torch.Tensor:
        """The normalised hidden state behind the last layer that each token runs, [T, hidden]."""
        state = self.embedded(layout)
        if self.pruning.exits:
            self._until_they_leave(state, layout)
        else:
            self._past_mlps(state, layout)
        return rmsnorm(state, self.weights.final_norm, self.model.rms_eps)

    def _until_they_leave(self, state: torch.Tensor, layout: Layout) -> None:
        pruning, eps = self.pruning, self.model.rms_eps
        rotation = self.rotation(layout)
        plan, slots = layout.attention  # type: ignore[misc]
        kept: dict[int, torch.Tensor] = {}
        running = torch.arange(len(state))
        may_leave = torch.arange(len(state)) < (len(state) if self._all_may_leave else _decodes(plan))
        self.ran.tokens += int(may_leave.sum())
        for index in pruning.kept:
            layer = self.weights.layers[index]
            x = rmsnorm(state, layer.input_norm, eps)
            query = self._query_and_keep(index, x, running, rotation, (plan, slots), kept)
            if not len(running):
                continue
            counted = int(may_leave[running].sum())
            attended = self.kv.attend(query, kept[pruning.kv_of[index]], (plan, slots))  # type: ignore[union-attr]
            rows = state[running] + product(attended, layer.o_proj, in_parts=False)[0]
            self.ran.attention[index] += counted
            if index not in pruning.without_mlp:
                rows += self.mlp(rmsnorm(rows, layer.post_norm, eps), layer)[0]
                self.ran.mlp[index] += counted
            state[running] = rows
            if index in pruning.exits:
                asked = may_leave[running]
                stays = torch.ones_like(asked)
                stays[asked] = ~self._confident(rows[asked])
                running, plan = running[stays], those_who_stay(plan, stays)

    def _query_and_keep(
        self,
        index: int,
        x: torch.Tensor,
        running: torch.Tensor,
        rotation: Rotation,
        plan: tuple[AttentionPlan, torch.Tensor],
        kept: dict[int, torch.Tensor],
    ) -> torch.Tensor:
        """The queries of those who run, [running, heads, head_dim]; keys and values of all are kept."""
        layer, size, split = self.weights.layers[index], self.model.head_dim, self._queries
        keeps = self.pruning.kv_of[index] == index
        if keeps and len(running) == len(x):
            heads = product(x, layer.qkv_proj, in_parts=False)[0].view(len(x), -1, size)
            query, kv = heads[:, : self.model.heads], heads[:, self.model.heads :]
        else:
            query = product(x[running], layer.qkv_proj[:split], in_parts=False)[0].view(
                len(running), self.model.heads, size
            )
            kv = product(x, layer.qkv_proj[split:], in_parts=False)[0].view(len(x), -1, size) if keeps else None
        if kv is not None:
            cache = self.caches[self.cache_of[index]]
            kept[index] = self.kv.write(index, self.rotated_kv(kv, layer, rotation), cache, plan)  # type: ignore[union-attr]
        cos, sin = rotation
        return self.rotated_query(query, layer, (cos[running], sin[running]))

    def _confident(self, rows: torch.Tensor) -> torch.Tensor:
        """Whether each state, [T, hidden], is sure enough of the next token."""
        x = rmsnorm(rows, self.weights.final_norm, self.model.rms_eps)
        first, second = (
            product(x, self.weights.lm_head, in_parts=False)[0].float().softmax(-1).topk(2).values.unbind(-1)
        )
        return first - second >= self.pruning.confidence

    def _past_mlps(self, state: torch.Tensor, layout: Layout) -> None:
        pruning, eps = self.pruning, self.model.rms_eps
        assert pruning.similarity is not None
        rotation = self.rotation(layout)
        kept: dict[int, torch.Tensor] = {}
        self.ran.tokens += len(state)
        passes = torch.zeros(len(state), dtype=torch.bool)  # by the next MLP
        for index in pruning.kept:
            layer = self.weights.layers[index]
            x = rmsnorm(state, layer.input_norm, eps)
            state += product(self.attended_to_kept(index, x, rotation, layout, kept), layer.o_proj, in_parts=False)[0]
            self.ran.attention[index] += len(state)
            if index in pruning.without_mlp:
                continue
            rows = torch.arange(len(state)) if index < pruning.first else (~passes).nonzero().view(-1)
            before = state[rows]
            after = before + self.mlp(rmsnorm(before, layer.post_norm, eps), layer)[0]
            state[rows] = after
            passes = torch.zeros_like(passes)
            passes[rows] = torch.cosine_similarity(before, after, dim=-1) >= pruning.similarity
            self.ran.mlp[index] += len(rows)


def those_who_stay(plan: AttentionPlan, stays: torch.Tensor) -> AttentionPlan:
    """The plan of a part of the batch: `stays` [rows], of its rows in their order, which then stand closed up."""
    tiles, spans = [], []
    first = 0
    for tile in plan.tiles:
        rows = stays[tile.first : tile.last]
        if count := int(rows.sum()):
            tiles.append(DecodeTile(first, first + count, tile.table[rows], tile.bias[rows]))
        first += count
    for span in plan.prefills:
        rows = stays[span.first : span.last]
        if count := int(rows.sum()):
            bias = span.bias
            if count < len(rows):
                whole = torch.full((len(rows), span.context), -torch.inf).triu_(1) if bias is None else bias
                bias = whole[rows]
            spans.append(PrefillSpan(first, first + count, span.context, span.blocks, bias))
        first += count
    return AttentionPlan(tiles, spans)


def _decodes(plan: AttentionPlan) -> int:
    return plan.tiles[-1].last if plan.tiles else 0
