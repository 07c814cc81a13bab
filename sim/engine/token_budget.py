"""A token budget that follows a target: steps with prompts should take as long as a token of those who decode may.

Proportional control. A step of so many tokens that took `seconds` asks for tokens · target / seconds, where its tokens
were all that it was allowed, or it took too long; else it says nothing about more. If a step takes a + b · tokens the
budget converges on (target - a) / b from either side without passing it, at a rate of a / target a step; if a is more
than the target, it stays at the minimum.
"""

from __future__ import annotations

import math

from pydantic import Field

from ground.spec import Spec
from sim.engine.plan import Plan

_MOST_CHANGE = 2.0  # of the budget by one step, which may have been slow for a reason of its own


class TokenBudgetSettings(Spec):
    tpot_target: float = Field(gt=0, description="seconds that a step with prompts should take")
    minimum: int = Field(
        gt=0, description="least token budget of a step, at least max_num_seqs; the most is max_num_batched_tokens"
    )


class TokenBudget:
    """`tokens` is the budget of the next step. A step that computes no prompt leaves it as it is."""

    def __init__(self, settings: TokenBudgetSettings, maximum: int) -> None:
        self.tokens = maximum
        self._exactly = float(maximum)  # before it is rounded
        self._settings = settings
        self._maximum = maximum
        self._ended = -math.inf  # when the last step did

    def ended(self, plan: Plan, now: float) -> None:
        """A step has, at `now`. One that was scheduled ahead began when the one before it ended."""
        seconds = now - max(plan.scheduled, self._ended)
        self._ended = now
        if not plan.chunks or seconds <= 0.0:
            return
        target = self._settings.tpot_target
        if plan.budget and seconds <= target:
            return
        tokens = plan.decodes + sum(chunk.tokens for chunk in plan.chunks)
        change = min(max(target / seconds, 1.0 / _MOST_CHANGE), _MOST_CHANGE)
        # A budget so small that a step changes it by less than a token must not stop there.
        wanted = change * (self._exactly if tokens == self.tokens else tokens)
        self._exactly = min(max(wanted, self._settings.minimum), self._maximum)
        self.tokens = round(self._exactly)
