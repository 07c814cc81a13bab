"""Seconds of a mixture of experts, by how many tokens there are and how many experts they reach."""

from __future__ import annotations

import polars as pl

from calibrate.curve import Curve, Surface
from calibrate.model import ModelShape


def activated_experts(experts: float, share: float, tokens: int) -> float:
    """Expected number of `experts` that at least one of `tokens` reaches, if each reaches a `share` of them evenly."""
    return experts * (1.0 - (1.0 - share) ** tokens)


class ExpertsLaw:
    """One rank's experts, all layers. Under expert parallelism it holds a part of them, whole; under tensor
    parallelism a slice of each, which takes its share of the measured time (linear in bytes and in FLOPs)."""

    def __init__(self, table: pl.DataFrame, model: ModelShape, layers: int, expert_ranks: int, slices: float) -> None:
        curves: dict[float, Curve] = {}
        for (tokens,), rows in table.sort("tokens", "activated_experts").group_by("tokens", maintain_order=True):
            seconds = [layers * value / slices for value in rows["seconds"]]
            curves[tokens] = Curve(rows["activated_experts"].to_list(), seconds)
        self._surface = Surface(curves)
        self._model = model
        self._ranks = expert_ranks
        self._known: dict[int, float] = {}

    def __call__(self, tokens: int) -> float:
        """Seconds for `tokens` of all ranks that share the experts; this rank computes its part of them."""
        if tokens not in self._known:
            model = self._model
            reached = activated_experts(model.experts / self._ranks, model.experts_per_token / model.experts, tokens)
            self._known[tokens] = self._surface(tokens / self._ranks, reached)
        return self._known[tokens]

    def covers(self, tokens: int) -> bool:
        return tokens / self._ranks <= self._surface.keys[-1]
