"""Which trials are better: those that keep to the constraints, and of these the ones that no other beats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from sim.results.pareto import pareto_front
from sim.study.search.objectives import Constraint, Objective
from sim.study.search.trials import Trial


def costs_of(trial: Trial, objectives: Sequence[Objective]) -> list[float]:
    """The objectives of a trial that ended well, as costs: less is better."""
    return [each.cost(trial.mean(each.metric)) for each in objectives]


def violation(trial: Trial, constraints: Sequence[Constraint]) -> float:
    """By how much a trial misses them all together, in shares of their limits; 0 where it keeps to each."""
    return sum(trial.violations(constraints).values())


def feasible(trials: Mapping[int, Trial], constraints: Sequence[Constraint]) -> list[int]:
    """The numbers of those that were simulated whole and keep to every constraint."""
    return [
        number
        for number, trial in trials.items()
        if trial.status == "ok" and trial.share == 1.0 and violation(trial, constraints) == 0
    ]


def front(trials: Mapping[int, Trial], objectives: Sequence[Objective], constraints: Sequence[Constraint]) -> list[int]:
    """The feasible ones that no other feasible one dominates, in the order of the first objective; with one objective
    the best, and those equal to it."""
    numbers = feasible(trials, constraints)
    if not numbers:
        return []
    costs = np.array([costs_of(trials[number], objectives) for number in numbers])
    rows = pareto_front(costs, ["smaller"] * len(objectives))
    return [numbers[row] for row in sorted(rows, key=lambda row: (*costs[row], numbers[row]))]


def ranked(trials: Sequence[Trial], objectives: Sequence[Objective], constraints: Sequence[Constraint]) -> list[int]:
    """Places of the trials that did not fail, best first: those that keep to the constraints by front after front, then
    the others by how much they miss (the constrained domination of Deb et al. 2002); equals by their place."""
    places = [place for place, trial in enumerate(trials) if trial.status == "ok"]
    missed = {place: violation(trials[place], constraints) for place in places}
    order: list[int] = []
    left = [place for place in places if missed[place] == 0]
    while left:
        costs = np.array([costs_of(trials[place], objectives) for place in left])
        rows = pareto_front(costs, ["smaller"] * len(objectives))
        order += [left[row] for row in rows]
        left = [place for place in left if place not in order]
    return order + sorted((place for place in places if missed[place] > 0), key=lambda place: missed[place])


def chosen(numbers: Sequence[int], count: int) -> list[int]:
    """At most `count` of a front, evenly spread over it, its ends first to be there."""
    if len(numbers) <= count:
        return list(numbers)
    if count == 1:
        return [numbers[0]]
    return [numbers[round(place * (len(numbers) - 1) / (count - 1))] for place in range(count)]
