"""Stabilisation windows and scaling policies do what Kubernetes' tests expect, and what its text says of any history.

Cases: `pkg/controller/podautoscaler/horizontal_test.go`.
"""

from math import ceil
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.fleet.autoscaling.scaling_rules import DefaultRules, GivenRules, Rules, ScalingRules

NOW = 100_000.0
FREE = {"stabilisation_window": 0, "policies": [{"type": "percent", "value": 1_000_000}]}


def rules(**given: Any) -> ScalingRules:
    return ScalingRules.model_validate(given)


def pods(value: int, period: int = 15) -> dict[str, Any]:
    return {"type": "pods", "value": value, "period": period}


def percent(value: int, period: int = 15) -> dict[str, Any]:
    return {"type": "percent", "value": value, "period": period}


def recommended(made: Rules, history: list[tuple[int, int]]) -> None:
    """So many seconds ago so many replicas were recommended."""
    for ago, replicas in sorted(history, reverse=True):
        made.follow(NOW - ago, 50, replicas, 0, 1000)


@pytest.mark.parametrize(
    ("history", "wanted", "expected"),
    [
        ([], 5, 5),
        ([(120, 4), (60, 5)], 3, 5),
        ([(120, 1), (60, 2)], 3, 3),
        ([(600, 10), (540, 9)], 3, 3),
        ([(600, 10), (60, 4), (120, 5), (540, 9)], 3, 5),
    ],
)
def test_without_behaviour_the_highest_recommendation_of_the_window_counts(
    history: list[tuple[int, int]], wanted: int, expected: int
) -> None:
    made = DefaultRules()
    recommended(made, history)
    assert made.follow(NOW, 50, wanted, 0, 1000) == expected


@pytest.mark.parametrize(
    ("up", "down", "history", "current", "wanted", "expected"),
    [
        (0, 300, [], 100, 5, 5),
        (0, 300, [(120, 4), (60, 5)], 100, 3, 5),
        (150, 300, [(120, 4), (60, 5)], 1, 7, 4),
        (0, 300, [(120, 1), (60, 2)], 100, 3, 3),
        (150, 300, [(120, 4), (60, 5)], 1, 3, 3),
        (0, 300, [(600, 10), (540, 9)], 100, 3, 3),
        (60, 300, [(600, 10), (540, 9)], 1, 100, 100),
        (0, 150, [(600, 10), (60, 4), (120, 5), (540, 9)], 100, 3, 5),
        (150, 300, [(6000, 10), (60, 6), (120, 5), (180, 9)], 1, 100, 5),
    ],
)
def test_with_behaviour_each_direction_has_its_window(
    up: int, down: int, history: list[tuple[int, int]], current: int, wanted: int, expected: int
) -> None:
    made = GivenRules(rules(**{**FREE, "stabilisation_window": up}), rules(stabilisation_window=down))
    recommended(made, history)
    assert made.follow(NOW, current, wanted, 0, 1000) == expected


@pytest.mark.parametrize(
    ("given", "added", "current", "wanted", "most", "expected"),
    [
        (None, 0, 10, 50, 1000, 20),
        ([pods(100), percent(100)], 0, 10, 500, 1000, 110),
        ([pods(2), percent(100)], 0, 10, 500, 1000, 20),
        ([pods(100)], 0, 10, 50, 1000, 50),
        ([percent(10_000)], 0, 10, 50, 1000, 50),
        ([pods(30)], 0, 10, 50, 1000, 40),
        ([percent(200)], 0, 10, 50, 1000, 30),
        ([percent(100, 60)], 15, 100, 500, 1000, 170),
        ([pods(300, 60)], 15, 100, 500, 200, 200),
        ([pods(5, 120)], 15, 100, 500, 1000, 100),
        ([pods(150, 120)], 15, 100, 500, 1000, 235),
        ([percent(200, 120)], 15, 100, 500, 1000, 255),
    ],
)
def test_scale_up_is_limited(
    given: list[dict[str, Any]] | None, added: int, current: int, wanted: int, most: int, expected: int
) -> None:
    made = GivenRules(rules() if given is None else rules(policies=given), None)
    made.scaled(NOW - 1800, current - added - 42, current - added)  # longer ago than any period
    made.scaled(NOW - 10, current - added, current)
    assert made.follow(NOW, current, wanted, 1, most) == expected


@pytest.mark.parametrize(
    ("given", "removed", "current", "wanted", "least", "expected"),
    [
        (None, 0, 10, 5, 1, 5),
        ([pods(100)], 0, 10, 0, 1, 1),
        ([percent(100)], 0, 10, 2, 5, 5),
        ([pods(5)], 0, 10, 2, 1, 5),
        ([percent(50)], 0, 10, 5, 1, 5),
        ([pods(5, 120)], 15, 100, 2, 1, 100),
        ([percent(50, 120)], 12, 100, 0, 1, 56),
        ([percent(10, 120)], 30, 100, 0, 1, 100),
        ([percent(1000, 120)], 30, 10, 5, 1, 5),
    ],
)
def test_scale_down_is_limited(
    given: list[dict[str, Any]] | None, removed: int, current: int, wanted: int, least: int, expected: int
) -> None:
    made = GivenRules(None, rules(stabilisation_window=0, **({} if given is None else {"policies": given})))
    made.scaled(NOW - 10, current + removed, current)
    assert made.follow(NOW, current, wanted, least, 1000) == expected


def test_select_disabled_changes_nothing_and_min_takes_the_least_change() -> None:
    both = [pods(3), percent(100)]
    still = GivenRules(rules(select="disabled"), rules(select="disabled", stabilisation_window=0))
    assert still.follow(NOW, 10, 50, 1, 100) == 10
    assert still.follow(NOW + 1, 10, 2, 1, 100) == 10
    slow = GivenRules(rules(select="min", policies=both), rules(select="min", policies=both, stabilisation_window=0))
    assert slow.follow(NOW, 10, 50, 1, 100) == 13
    assert slow.follow(NOW + 1, 10, 2, 1, 100) == 7


RECOMMENDATIONS = st.lists(st.tuples(st.integers(1, 90), st.integers(0, 40)), min_size=1, max_size=60)
POLICIES = st.lists(
    st.builds(
        lambda kind, value, period: {"type": kind, "value": value, "period": period},
        st.sampled_from(["pods", "percent"]),
        st.integers(1, 150),
        st.integers(1, 200),
    ),
    min_size=1,
    max_size=3,
)
RULES = st.builds(
    lambda window, select, policies: rules(stabilisation_window=window, select=select, policies=policies),
    st.sampled_from([0, 15, 60, 300]),
    st.sampled_from(["max", "min", "disabled"]),
    POLICIES,
)


class NaiveRules:
    """Remembers everything, and looks at all of it each time."""

    def __init__(self, up: ScalingRules, down: ScalingRules) -> None:
        self.up, self.down = up, down
        self.recommendations: list[tuple[float, int]] = []
        self.sizes: list[tuple[float, int]] = []  # since when there are so many

    def size_before(self, time: float, now: int) -> int:
        """How many there were up to that time; as many as the first change began with, before it."""
        size = self.sizes[0][1] if self.sizes else now
        for since, replicas in self.sizes:
            if since <= time:
                size = replicas
        return size

    def decide(self, time: float, current: int, recommended: int, least: int, most: int) -> int:
        self.recommendations.append((time, recommended))
        ups = [size for when, size in self.recommendations if when > time - (self.up.stabilisation_window or 0)]
        downs = [size for when, size in self.recommendations if when > time - (self.down.stabilisation_window or 0)]
        lowest, highest = min([recommended, *ups]), max([recommended, *downs])
        stable = current
        if stable < lowest:
            stable = lowest
        if stable > highest:
            stable = highest
        if stable > current:
            return min(stable, most, max(current, self.limit(time, current, self.up, 1)))
        if stable < current:
            return max(stable, least, min(current, self.limit(time, current, self.down, -1)))
        return current

    def limit(self, time: float, current: int, given: ScalingRules, sign: int) -> int:
        limits = []
        for policy in given.policies or ():
            began = self.size_before(time - policy.period, current)
            if policy.type == "pods":
                limits.append(began + sign * policy.value)
            elif sign > 0:
                limits.append(ceil(began * (1 + policy.value / 100)))
            else:
                limits.append(int(began * (1 - policy.value / 100)))
        if given.select == "disabled":
            return current
        return max(limits) if (given.select == "max") == (sign > 0) else min(limits)


@given(RULES, RULES, RECOMMENDATIONS, st.integers(0, 5), st.integers(6, 40), st.integers(0, 40))
def test_any_history_is_followed_as_one_who_remembers_all_of_it_would(
    up: ScalingRules, down: ScalingRules, history: list[tuple[int, int]], least: int, most: int, begin: int
) -> None:
    made, naive = GivenRules(up, down), NaiveRules(up, down)
    time, current = 0.0, max(least, min(most, begin))
    naive.sizes.append((-1e9, current))
    for seconds, wanted in history:
        time += seconds
        replicas = made.follow(time, current, wanted, least, most)
        assert replicas == naive.decide(time, current, wanted, least, most)
        assert least <= replicas <= most
        if replicas < current:
            window = down.stabilisation_window or 0
            assert replicas >= max(size for when, size in naive.recommendations if when > time - window or when == time)
        if replicas != current:
            made.scaled(time, current, replicas)
            naive.sizes.append((time, replicas))
            current = replicas


@given(st.integers(1, 20), st.integers(5, 120), RECOMMENDATIONS)
def test_no_period_adds_more_than_its_policy_allows(value: int, period: int, history: list[tuple[int, int]]) -> None:
    made = GivenRules(rules(policies=[pods(value, period)]), rules(stabilisation_window=0))
    time, current, sizes = 0.0, 1, [(-1e9, 1)]
    for seconds, wanted in history:
        time += seconds
        replicas = made.follow(time, current, wanted, 0, 1000)
        if replicas > current:
            before = [size for since, size in sizes if since <= time - period][-1]
            assert replicas - before <= value
        if replicas != current:
            made.scaled(time, current, replicas)
            sizes.append((time, replicas))
            current = replicas


@given(RECOMMENDATIONS, st.integers(0, 5), st.integers(6, 40))
def test_the_default_rules_stay_between_the_bounds_and_above_the_window(
    history: list[tuple[int, int]], least: int, most: int
) -> None:
    made = DefaultRules()
    time, current, seen = 0.0, least, []
    made.begin(time, current)
    for seconds, wanted in history:
        time += seconds
        seen.append((time, wanted))
        replicas = made.follow(time, current, wanted, least, most)
        highest = max(size for when, size in seen if when >= time - 300)
        assert least <= replicas <= most
        assert replicas <= max(2 * current, 4, least)
        assert replicas >= min(highest, most, max(2 * current, 4))
        current = replicas
