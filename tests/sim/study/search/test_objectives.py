"""What is wanted, as it is written."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ground.errors import UserError
from sim.study.search.objectives import (
    Constraint,
    Objective,
    metric_named,
    objectives_of,
    parse_constraint,
    parse_objective,
    value_text,
)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("ttft.p99", Objective("ttft.p99", "min")),
        ("min ttft.p99", Objective("ttft.p99", "min")),
        ("goodput.requests", Objective("goodput.requests", "max")),
        ("  max   goodput.requests ", Objective("goodput.requests", "max")),
        ("max kv.mean", Objective("kv.mean", "max")),
        ("max quality.top1", Objective("quality.top1", "max")),
        ("min quality.kl.high", Objective("quality.kl.high", "min")),
    ],
)
def test_objectives(text: str, wanted: Objective) -> None:
    assert parse_objective(text) == wanted
    assert parse_objective(str(wanted)) == wanted


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "expected min or max and a metric"),
        ("least ttft.p99", "expected min or max and a metric"),
        ("min happiness", "metric 'happiness' is unknown"),
        ("max ttft.p99", "ttft.p99 is better smaller; expected min ttft.p99"),
        ("min quality.top1", "quality.top1 is better larger; expected max quality.top1"),
        ("kv.mean", "is neither better large nor small; expected min or max before it"),
        ("min quality.top2", "metric 'quality.top2' is unknown; expected one of quality.top1"),
        ("min quality.kl.middle", "or the .low or .high of one"),
    ],
)
def test_no_objective(text: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_objective(text)
    assert said in caught.value.message and "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("ttft.p99 <= 0.5", Constraint("ttft.p99", "<=", 0.5)),
        ("quality.top1>=0.99", Constraint("quality.top1", ">=", 0.99)),
        ("preemptions <= 0", Constraint("preemptions", "<=", 0.0)),
    ],
)
def test_constraints(text: str, wanted: Constraint) -> None:
    assert parse_constraint(text) == wanted
    assert parse_constraint(str(wanted)) == wanted


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("ttft.p99 < 0.5", "expected a metric, <= or >=, and a number"),
        ("ttft.p99", "expected a metric, <= or >=, and a number"),
        ("ttft.p98 <= 0.5", "metric 'ttft.p98' is unknown"),
        ("ttft.p99 <= soon", "'soon' is no number"),
        ("ttft.p99 <= nan", "'nan' is no number"),
        ("ttft.p99 <= inf", "'inf' is no number"),
    ],
)
def test_no_constraint(text: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_constraint(text)
    assert said in caught.value.message


@given(st.sampled_from(["<=", ">="]), st.floats(-1e3, 1e3), st.floats(-1e3, 1e3))
def test_a_limit_is_missed_by_a_share_of_itself(bound: str, limit: float, value: float) -> None:
    constraint = Constraint("ttft.p99", "<=" if bound == "<=" else ">=", limit)
    kept = value <= limit if bound == "<=" else value >= limit
    assert (constraint.violation(value) == 0.0) == (kept or math.isclose(value, limit, abs_tol=1e-300))
    assert constraint.violation(limit) == 0.0 and constraint.violation(None) == 1.0
    if not kept and limit:
        assert constraint.violation(value) == pytest.approx(abs(value - limit) / abs(limit))


def test_a_mean_that_is_off_in_its_last_digit_keeps_to_the_limit() -> None:
    mean = math.nextafter(0.9, 0.0)
    assert mean < 0.9 and Constraint("slo.attainment", ">=", 0.9).violation(mean) == 0.0


def test_costs_are_less_where_it_is_better() -> None:
    wanted = (Objective("ttft.p99", "min"), Objective("goodput.requests", "max"))
    assert objectives_of({"ttft.p99": 2.0, "goodput.requests": 3.0}, wanted) == (2.0, -3.0)
    assert objectives_of({"ttft.p99": 2.0, "goodput.requests": None}, wanted) is None


def test_values_as_people_read_them() -> None:
    assert value_text("ttft.p99", 0.0125) == "12.5 ms"
    assert value_text("quality.top1", 0.987) == "98.7 %"
    assert value_text("quality.kl", 0.0123) == "0.0123"
    assert metric_named("quality.perplexity.low").label == "Perplexity"
