"""What has happened until each sample, against counting one by one."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.results.telemetry.samples import count_until, observed, sample_times, seconds, spread
from sim.results.telemetry.vllm_metrics import token_bounds

EIGHTHS = st.integers(0, 80).map(lambda n: n / 8)
MOMENTS = st.lists(EIGHTHS, max_size=20)


@given(st.floats(0, 50), st.floats(0, 50), st.integers(1, 20_000))
def test_samples_are_multiples_of_the_interval_and_the_end(begin: float, length: float, step: int) -> None:
    end = begin + length
    times = sample_times(begin, end, step / 1000)
    assert (np.diff(times) > 0).all()
    assert times[-1] - 1 < end * 1000 <= times[-1]
    assert (times[:-1] % step == 0).all() and (times[:-1] >= begin * 1000).all()
    grid = [k * step for k in range(int(times[-1]) // step + 1) if k * step >= begin * 1000]
    assert set(grid) <= set(times.tolist())


@given(MOMENTS, MOMENTS.filter(bool))
def test_counts_until_each_sample(moments: list[float], at: list[float]) -> None:
    instants = np.unique(at)
    weights = np.arange(len(moments)) + 1
    values = np.array(moments)
    assert count_until(values, instants).tolist() == [sum(m <= t for m in moments) for t in instants]
    weighted = [sum(w for m, w in zip(moments, weights, strict=True) if m <= t) for t in instants]
    assert count_until(values, instants, weights).tolist() == weighted


@given(st.lists(st.tuples(EIGHTHS, st.floats(0, 10)), max_size=20), MOMENTS.filter(bool))
def test_a_histogram_counts_values_at_or_below_each_bound(pairs: list[tuple[float, float]], at: list[float]) -> None:
    instants, bounds = np.unique(at), np.array([0.5, 1.0, 2.5, 5.0])
    moments, values = (np.array([pair[i] for pair in pairs], dtype=float) for i in (0, 1))
    histogram = observed(moments, values, instants).histogram(len(instants), bounds)
    for sample, moment in enumerate(instants):
        seen = [value for when, value in pairs if when <= moment]
        assert histogram.counts[sample].tolist() == [sum(v <= b for v in seen) for b in (*bounds, np.inf)]
        assert histogram.sums[sample] == pytest.approx(sum(seen))


RUNS = st.lists(st.tuples(EIGHTHS, st.integers(0, 40), st.integers(1, 9), st.integers(1, 3)), min_size=1, max_size=6)


@given(RUNS, MOMENTS.filter(bool))
def test_observations_of_a_run_come_one_by_one(runs: list[tuple[float, int, int, int]], at: list[float]) -> None:
    """Sampled anywhere: what is complete at an instant, and all of it at the run's end."""
    begin = np.array([run[0] for run in runs])
    end = begin + np.array([run[1] for run in runs]) / 8
    count, times = (np.array([run[i] for run in runs]) for i in (2, 3))
    instants = np.append(np.unique(at), 100.0)
    found = spread(begin, end, count, np.ones(len(runs)), times, instants).count(len(instants))
    for moment, seen in zip(instants, found, strict=True):
        least = most = 0
        for since, until, number, each in zip(begin, end, count, times, strict=True):
            moments = since + (until - since) * np.arange(1, number + 1) / number
            least += each * int((moments <= moment - 1e-9).sum()) if until > moment else each * number
            most += each * int((moments <= moment + 1e-9).sum()) if until > moment else each * number
        assert least <= seen <= most
    assert found[-1] == (count * times).sum()


def test_bounds_of_tokens_are_vllms() -> None:
    """`build_1_2_5_buckets(100)` in `vllm/v1/metrics/loggers.py` gives 1, 2, 5, 10, 20, 50, 100."""
    assert token_bounds(100) == [1, 2, 5, 10, 20, 50, 100]
    assert token_bounds(99) == [1, 2, 5, 10, 20, 50]
    assert token_bounds(1) == [1]
    assert token_bounds(4096)[-1] == 2000


def test_samples_in_seconds() -> None:
    assert seconds(sample_times(0.0, 1.25, 0.5)).tolist() == [0.0, 0.5, 1.0, 1.25]
