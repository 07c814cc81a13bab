"""Intervals hold what they promise: against printed tables, and by drawing."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.study.intervals import Interval, difference, mean_interval, share_at_most, student_quantile, verdict

FLOATS = st.floats(-1e6, 1e6)


@pytest.mark.parametrize(
    ("freedom", "confidence", "printed"),
    # The table of t in any textbook, two-sided.
    [
        (1, 0.9, 6.314),
        (1, 0.95, 12.706),
        (2, 0.95, 4.303),
        (3, 0.99, 5.841),
        (4, 0.95, 2.776),
        (5, 0.9, 2.015),
        (10, 0.99, 3.169),
        (29, 0.95, 2.045),
        (120, 0.95, 1.980),
    ],
)
def test_students_law_is_the_printed_one(freedom: int, confidence: float, printed: float) -> None:
    assert student_quantile(freedom, confidence) == pytest.approx(printed, abs=6e-4)


@pytest.mark.parametrize(("freedom", "confidence"), [(0, 0.9), (3, 0.0), (3, 1.0)])
def test_no_such_law(freedom: int, confidence: float) -> None:
    with pytest.raises(ValueError, match="expected at least 1, and between 0 and 1"):
        student_quantile(freedom, confidence)


@pytest.mark.parametrize("count", [2, 3, 6])
def test_intervals_hold_the_mean_as_often_as_they_say(count: int) -> None:
    random, samples, confidence = np.random.default_rng(count), 3_000, 0.9
    held = 0
    for sample in random.normal(5.0, 2.0, (samples, count)).tolist():
        interval = mean_interval(sample, confidence)
        held += interval.low <= 5.0 <= interval.high
    assert abs(held / samples - confidence) < 4 * math.sqrt(confidence * (1 - confidence) / samples)


def test_what_pairs_share_falls_out() -> None:
    """Traces that differ much more from each other than two settings on the same one do."""
    random = np.random.default_rng(3)
    traces = random.normal(100.0, 30.0, 5)
    one, other = (traces + 1.0 + random.normal(0, 0.1, 5)).tolist(), traces.tolist()
    assert verdict(difference(one, other), smaller_is_better=True) == "worse"
    apart = mean_interval(one).half
    assert apart is not None and apart > 10


@given(st.lists(FLOATS, min_size=2, max_size=8), FLOATS)
def test_a_mean_moves_with_its_values_and_lies_among_them(values: list[float], shift: float) -> None:
    interval = mean_interval(values)
    assert interval.half is not None and interval.half >= 0
    assert min(values) - 1e-6 <= interval.mean <= max(values) + 1e-6
    assert mean_interval([value + shift for value in values]).mean == pytest.approx(interval.mean + shift, abs=1e-6)
    assert difference(values, values) == Interval(0.0, 0.0)


def test_one_value_says_nothing_of_others() -> None:
    assert mean_interval([3.0]) == Interval(3.0, None)
    assert verdict(difference([3.0], [9.0]), smaller_is_better=True) == "not known"
    with pytest.raises(ValueError, match="no values"):
        mean_interval([])


@pytest.mark.parametrize(
    ("change", "smaller", "said"),
    [
        (Interval(-2.0, 1.0), True, "better"),
        (Interval(-2.0, 1.0), False, "worse"),
        (Interval(2.0, 1.0), True, "worse"),
        (Interval(2.0, 1.0), False, "better"),
        (Interval(2.0, 2.0), False, "no difference"),
        (Interval(0.0, 0.0), True, "no difference"),
        (Interval(-0.1, 3.0), True, "no difference"),
    ],
)
def test_what_a_difference_says(change: Interval, smaller: bool, said: str) -> None:
    assert verdict(change, smaller_is_better=smaller) == said


@given(st.integers(1, 40), st.data())
def test_a_share_at_the_limit_gives_so_few_hits_as_rarely_as_said(trials: int, data: st.DataObject) -> None:
    hits = data.draw(st.integers(0, trials - 1))
    limit = share_at_most(hits, trials)
    chance = sum(math.comb(trials, k) * limit**k * (1 - limit) ** (trials - k) for k in range(hits + 1))
    assert chance == pytest.approx(0.05, rel=1e-6)
    assert hits / trials < limit < 1


def test_no_trial_leaves_every_share_believable() -> None:
    assert share_at_most(0, 0) == share_at_most(4, 4) == 1.0
    assert share_at_most(0, 5) == pytest.approx(1 - 0.05 ** (1 / 5))
