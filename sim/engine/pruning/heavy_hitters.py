"""A budget of tokens a sequence, by layer and KV head those that were attended to the most; the others are given up.

Zhang et al., "H2O: Heavy-Hitter Oracle for Efficient Generative Inference of LLMs" (NeurIPS 2023); half
of the paper's budget is recent tokens. The blocks of a request hold what each head kept: no two requests can share
them, and there is no prefix cache.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pydantic import Field, model_validator

from calibrate.model import ModelShape
from calibrate.pruning import Pruning
from ground.spec import Spec


class HeavyHitters(Spec):
    budget: int = Field(gt=1, description="tokens kept of a sequence; whole blocks")
    recent: int = Field(gt=0, description="the last of them, kept in any case; half the budget if not given")

    @model_validator(mode="before")
    @classmethod
    def _half_of_them_are_recent(cls, given: Any) -> Any:
        if isinstance(given, dict) and isinstance(given.get("budget"), int):
            return {"recent": max(1, given["budget"] // 2), **given}
        return given

    @model_validator(mode="after")
    def _somebody_can_go(self) -> HeavyHitters:
        if self.recent >= self.budget:
            raise ValueError(f"recent is {self.recent}; expected fewer than the budget ({self.budget})")
        return self

    def prune(self, pruning: Pruning, model: ModelShape) -> Pruning:
        return replace(pruning, budget=self.budget, recent=self.recent)
