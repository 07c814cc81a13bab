"""Service classes of synthetic sessions: shares, deadlines, and lengths of their own."""

from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from ground.errors import UserError
from ground.spec import check_spec
from traces.synth import SynthSpec, generate

SPEC: dict[str, Any] = {
    "requests": 4000,
    "arrivals": {"process": "poisson", "rate": 2.0},
    "lengths": {
        "prompt": {"distribution": "uniform", "low": 100, "high": 200},
        "output": {"distribution": "uniform", "low": 100, "high": 200},
    },
}
CLASSES: dict[str, Any] = {
    "inspection": {"weight": 3, "deadline": 0.1, "output": {"distribution": "constant", "value": 2}},
    "forecast": {"weight": 1, "prompt": {"distribution": "uniform", "low": 5000, "high": 6000}},
}


def draw(classes: dict[str, Any] | None, **more: Any) -> pl.DataFrame:
    labels = {} if classes is None else {"labels": {"classes": classes}}
    return generate(check_spec(SynthSpec, SPEC | labels | more, "spec"), 1).requests


def test_classes_have_their_shares_deadlines_and_lengths() -> None:
    requests = draw(CLASSES)
    share = (requests["slo_class"] == "inspection").mean()
    assert share == pytest.approx(0.75, abs=4 * (0.75 * 0.25 / 4000) ** 0.5)
    inspection, forecast = (requests.filter(pl.col("slo_class") == name) for name in CLASSES)
    assert inspection["deadline"].unique().to_list() == [0.1] and forecast["deadline"].null_count() == len(forecast)
    assert inspection["output_tokens"].unique().to_list() == [2]
    assert inspection["prompt_tokens"].is_between(100, 200).all()
    assert forecast["prompt_tokens"].is_between(5000, 6000).all()
    assert forecast["output_tokens"].is_between(100, 200).all()


def test_what_a_class_does_not_say_is_as_without_classes() -> None:
    plain, drawn = draw(None), draw(CLASSES)
    assert_frame_equal(drawn.select("arrival"), plain.select("arrival"))
    inspection = drawn["slo_class"] == "inspection"
    assert_frame_equal(
        drawn.filter(inspection).select("prompt_tokens"), plain.filter(inspection).select("prompt_tokens")
    )
    named = draw({name: {"weight": each["weight"]} for name, each in CLASSES.items()})
    assert_frame_equal(named.drop("slo_class"), plain)
    assert_frame_equal(draw(CLASSES), drawn)


def test_a_session_keeps_its_class() -> None:
    sessions = {
        "turns": {"distribution": "geometric", "mean": 3},
        "think_time": {"distribution": "exponential", "mean": 2},
    }
    kinds = draw(CLASSES, sessions=sessions).group_by("session").agg(pl.col("slo_class").n_unique())
    assert kinds["slo_class"].unique().to_list() == [1]


def test_a_weight_is_positive() -> None:
    with pytest.raises(UserError, match=r"labels\.classes\.a\.weight"):
        draw({"a": {"weight": 0}})
