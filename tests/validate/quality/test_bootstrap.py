"""Intervals by resampling documents."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from validate.quality.bootstrap import estimate


def mean(total):
    return total[..., 1] / total[..., 0]


@given(st.lists(st.tuples(st.integers(1, 50), st.floats(0, 100)), min_size=1, max_size=20))
def test_the_mean_weighs_tokens_and_lies_between_the_documents(rows):
    sums = np.array(rows, float)
    found = estimate(sums, mean)
    assert found.mean == pytest.approx(sums[:, 1].sum() / sums[:, 0].sum())
    each = sums[:, 1] / sums[:, 0]
    assert each.min() - 1e-9 <= found.low <= found.high <= each.max() + 1e-9


def test_documents_that_agree_leave_nothing_open():
    found = estimate(np.array([[10.0, 20.0]] * 5), mean)
    assert found.low == found.mean == found.high == 2.0


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    random = np.random.default_rng(5)
    covered = 0
    for trial in range(100):
        found = estimate(np.stack([np.ones(40), random.exponential(3.0, 40)], axis=1), mean, seed=trial)
        covered += found.low <= 3.0 <= found.high
    # The percentile bootstrap of a skewed mean of 40 covers a little less than 95 %.
    assert 87 <= covered <= 99


def test_the_same_documents_give_the_same_interval():
    sums = np.random.default_rng(1).random((12, 2)) + 1
    assert estimate(sums, mean) == estimate(sums, mean)
