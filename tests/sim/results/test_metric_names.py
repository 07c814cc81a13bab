"""Metric names: every name resolves, unknown ones are told their neighbours, and every number reads well."""

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from run_tables import queue_run

from ground.errors import UserError
from sim.results.display import UNKNOWN, digits, metric_text, seconds, share
from sim.results.metric_names import METRICS, OPTIONAL, describe, flatten, metric
from sim.results.metrics import compute
from sim.results.slo import Slo


def test_every_name_finds_its_number() -> None:
    requests, steps = queue_run(200)
    metrics = compute(requests, steps, slo=Slo(ttft=1.0), gpus=2, gpu_hour_price=1.0, kv_blocks_total=2000)
    flat = flatten(metrics)
    assert list(flat) == list(METRICS)
    optional = {name for name in METRICS if name.split(".")[0] in OPTIONAL}
    assert {name for name, value in flat.items() if value is None} == optional
    assert metric(metrics, "ttft.p99") == metrics["ttft"]["p99"]
    assert pl.DataFrame([flat]).width == len(METRICS)
    assert all(metric_text(name, value) != UNKNOWN for name, value in flat.items() if name not in optional)


def test_an_unknown_name_is_told_near_ones() -> None:
    with pytest.raises(UserError, match=r"'ttft\.p98' is unknown.*ttft\.p99"):
        describe("ttft.p98")
    with pytest.raises(UserError, match=r"'goodput' is unknown.*goodput\.requests"):
        metric({}, "goodput")
    with pytest.raises(UserError, match=r"expected one of requests\.total"):
        describe("zzz")


def test_which_way_is_better() -> None:
    assert describe("e2e.mean").better == describe("cost.total").better == "smaller"
    assert describe("goodput.requests").better == describe("slo.attainment").better == "larger"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"), (0.0, "0 s"), (0.00035, "350 µs"), (0.0125, "12.5 ms"), (3.24, "3.24 s"), (60.0, "60 s"),
        (840.0, "14 min"), (18_900.0, "5.25 h"), (0.99996, "1 s"),
    ],
)  # fmt: skip
def test_seconds(value: float | None, text: str) -> None:
    assert seconds(value) == text


def test_digits_and_shares() -> None:
    assert [digits(x) for x in (None, 0, 7, 12_345, 0.01234, 12.34, 1234.5)] == [
        "–", "0", "7", "12,345", "0.0123", "12.3", "1,234",
    ]  # fmt: skip
    assert [share(x) for x in (None, 0.0, 0.9312, 0.99996, 1.0)] == ["–", "0.0 %", "93.1 %", "99.9 %", "100.0 %"]


@given(st.floats(1e-6, 1e6))
def test_seconds_read_back_within_half_a_digit(value: float) -> None:
    number, unit = seconds(value).split()
    size = {"µs": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0}[unit]
    assert float(number.replace(",", "")) * size == pytest.approx(value, rel=0.0051)
