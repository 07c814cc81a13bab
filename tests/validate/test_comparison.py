"""Arithmetic of errors, spreads and rankings."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ground.errors import UserError
from sim.results.folder import Run
from sim.results.metrics import compute
from sim.results.recorder import StepRecorder
from sim.results.slo import Slo
from validate.comparison import COMPARED, Comparison, Difference, compare
from validate.ranking import ranking
from validate.recording import request_table

SLO = Slo(ttft=0.5)


def run(name, times, *, output_tokens=3):
    """A run of requests given as (arrival, first_token, finish), or (arrival,) for one that failed."""
    rows = [
        {
            "request_id": index,
            "replica": 0,
            "arrival": time[0],
            "first_scheduled": time[0] if len(time) > 1 else None,
            "first_token": time[1] if len(time) > 1 else None,
            "finish": time[2] if len(time) > 1 else None,
            "prompt_tokens": 8,
            "output_tokens": output_tokens,
            "cached_tokens": 0,
            "preemptions": 0,
            "status": "finished" if len(time) > 1 else "failed",
        }
        for index, time in enumerate(times)
    ]
    requests = request_table(rows)
    steps = StepRecorder().take_table()
    metrics = compute(requests, steps, slo=SLO, gpus=1, gpu_hour_price=None, kv_blocks_total=None)
    return Run(requests, steps, metrics, {}, [], name)


def test_errors_are_fractions_of_what_was_measured():
    comparison = compare(run("a", [(0.0, 0.3, 1.1)]), [run("b", [(0.0, 0.2, 1.0)])])
    ttft = comparison.metrics["ttft.p50"]
    assert (ttft.predicted, ttft.measured) == (pytest.approx(0.3), pytest.approx(0.2))
    assert ttft.difference == pytest.approx(0.1)
    assert ttft.error == pytest.approx(0.5)
    assert comparison.metrics["e2e.mean"].error == pytest.approx(0.1)
    assert comparison.ape["ttft"].mean == pytest.approx(0.5)
    assert comparison.ape["tpot"].p50 == pytest.approx(0.0)
    assert comparison.ape["e2e"].requests == 1
    assert comparison.spread == {}
    assert set(comparison.metrics) == set(COMPARED)


@pytest.mark.parametrize(
    ("predicted", "measured", "error"),
    [(0.0, 0.0, 0.0), (1.0, 0.0, None), (None, 1.0, None), (1.0, None, None), (1.0, 2.0, -0.5)],
)
def test_error_of_nothing(predicted, measured, error):
    assert Difference(predicted, measured).error == error


def test_repeats_are_averaged_and_their_spread_kept():
    repeats = [run("r0", [(0.0, 0.2, 1.0)]), run("r1", [(0.0, 0.4, 1.0)])]
    comparison = compare(run("a", [(0.0, 0.3, 1.0)]), repeats, name="policy")
    assert comparison.name == "policy"
    assert comparison.repeats == 2
    assert comparison.metrics["ttft.mean"].measured == pytest.approx(0.3)
    assert comparison.spread["ttft.mean"] == pytest.approx(0.2)
    assert comparison.ape["ttft"].mean == pytest.approx(0.0)


def test_requests_that_finished_on_one_side_only_are_counted():
    comparison = compare(run("a", [(0.0, 0.3, 1.0), (0.1, 0.2, 0.3)]), [run("b", [(0.0, 0.3, 1.0), (0.1,)])])
    assert comparison.unmatched == 1
    assert comparison.ape["e2e"].requests == 1


def test_runs_of_other_requests_are_refused():
    with pytest.raises(UserError, match="2 requests measured, 1 predicted"):
        compare(run("a", [(0.0, 0.3, 1.0)]), [run("b", [(0.0, 0.3, 1.0), (0.1, 0.2, 0.3)])])


@given(st.lists(st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)), min_size=1, max_size=20))
def test_a_run_compared_with_itself_has_no_error(latencies):
    one = run("a", [(i * 0.1, i * 0.1 + ttft, i * 0.1 + ttft + rest) for i, (ttft, rest) in enumerate(latencies)])
    comparison = compare(one, [one, one])
    for difference in comparison.metrics.values():
        assert difference.error is None or difference.error == pytest.approx(0.0, abs=1e-12)
    assert comparison.unmatched == 0
    assert all(error.mean == pytest.approx(0.0, abs=1e-12) for error in comparison.ape.values())


def policy(name, predicted, measured, spread=0.0):
    metrics = {metric: Difference(None, None) for metric in COMPARED}
    metrics |= {"ttft.p99": Difference(predicted, measured), "throughput.requests": Difference(predicted, measured)}
    return Comparison(name, metrics, {}, 0, 3, {"ttft.p99": spread, "throughput.requests": spread})


def test_an_order_that_holds():
    ranks = ranking([policy("slow", 3.0, 5.0), policy("fast", 1.0, 2.0), policy("middle", 2.0, 3.0)])
    assert set(ranks) == {"ttft.p99", "throughput.requests"}
    by_latency, by_rate = ranks["ttft.p99"], ranks["throughput.requests"]
    assert by_latency.predicted == by_latency.measured == ["fast", "middle", "slow"]
    assert by_rate.predicted == by_rate.measured == ["slow", "middle", "fast"]
    assert by_latency.tau == by_rate.tau == 1.0
    assert by_latency.held is True


def test_a_flip_beyond_the_spread_is_named_best_first():
    rank = ranking([policy("a", 1.0, 2.0), policy("b", 2.0, 1.0), policy("c", 3.0, 3.0)])["ttft.p99"]
    assert rank.flipped == [("a", "b")]
    assert rank.tau == pytest.approx(1 / 3)
    assert rank.held is False


def test_a_flip_within_the_spread_is_a_tie():
    rank = ranking([policy("a", 1.0, 2.0, 0.0), policy("b", 2.0, 1.9, 0.2), policy("c", 3.0, 3.0)])["ttft.p99"]
    assert rank.flipped == []
    assert rank.ties == [("a", "b")]
    assert rank.held is True


def test_nothing_to_tell_apart_is_no_verdict():
    rank = ranking([policy("a", 1.0, 2.0, 1.0), policy("b", 2.0, 2.5, 0.0)])["ttft.p99"]
    assert rank.tau is None
    assert rank.held is None


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=2, max_size=7))
def test_tau_is_that_of_the_textbook(values):
    """Kendall's tau-b, counted pair by pair."""
    policies = [policy(str(i), float(p), float(m)) for i, (p, m) in enumerate(values)]
    sign = [((p > q) - (p < q), (m > n) - (m < n)) for i, (p, m) in enumerate(values) for q, n in values[i + 1 :]]
    numerator = sum(a * b for a, b in sign)
    denominator = (sum(a * a for a, _ in sign) * sum(b * b for _, b in sign)) ** 0.5
    rank = ranking(policies)["ttft.p99"]
    assert rank.tau == (pytest.approx(numerator / denominator) if denominator else None)


def test_no_ranking_of_one():
    assert ranking([policy("a", 1.0, 2.0)]) == {}
