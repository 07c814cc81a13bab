"""Did the order of the policies hold? A sweep is worth as much as its ranking."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from math import sqrt

from sim.results.metric_names import describe
from validate.comparison import Comparison


@dataclass(frozen=True)
class Ranking:
    """The order of the policies by one metric, as predicted and as measured, best first.

    `flipped` are the pairs (a, b) predicted a before b and measured b before a; `ties` are the pairs whose measured
    values differ by no more than the repeats of either do, so that the measurement does not say who is better.
    `tau` is Kendall's tau-b over all pairs, with `ties` tied; null where no pair is ordered on both sides.
    """

    predicted: list[str]
    measured: list[str]
    tau: float | None
    flipped: list[tuple[str, str]]
    ties: list[tuple[str, str]]

    @property
    def held(self) -> bool | None:
        """No pair flipped; null where no pair could be told apart."""
        return None if self.tau is None else not self.flipped


def ranking(policies: Sequence[Comparison]) -> dict[str, Ranking]:
    """The ranking by each metric that has a better direction and that every policy has on both sides."""
    rankings = {}
    for name in policies[0].metrics if policies else ():
        complete = all(policy.metrics[name].difference is not None for policy in policies)
        if describe(name).better != "neither" and complete and len(policies) > 1:
            rankings[name] = _rank(name, policies)
    return rankings


def _rank(name: str, policies: Sequence[Comparison]) -> Ranking:
    sign = 1.0 if describe(name).better == "smaller" else -1.0
    predicted = {policy.name: sign * (policy.metrics[name].predicted or 0.0) for policy in policies}
    measured = {policy.name: sign * (policy.metrics[name].measured or 0.0) for policy in policies}
    spread = {policy.name: policy.spread.get(name, 0.0) for policy in policies}
    flipped, ties = [], []
    agreeing = predicted_ties = 0
    for a, b in combinations(predicted, 2):
        if predicted[b] < predicted[a]:
            a, b = b, a
        measured_gap = measured[b] - measured[a]
        tied = abs(measured_gap) <= max(spread[a], spread[b])
        if predicted[a] == predicted[b]:
            predicted_ties += 1
        if tied:
            ties.append((a, b))
        elif predicted[a] != predicted[b]:
            if measured_gap < 0:
                flipped.append((a, b))
            else:
                agreeing += 1
    pairs = len(policies) * (len(policies) - 1) // 2
    ordered = sqrt((pairs - predicted_ties) * (pairs - len(ties)))
    return Ranking(
        predicted=sorted(predicted, key=lambda policy: predicted[policy]),
        measured=sorted(measured, key=lambda policy: measured[policy]),
        tau=(agreeing - len(flipped)) / ordered if ordered else None,
        flipped=flipped,
        ties=ties,
    )
