"""Models and priorities of synthetic sessions."""

from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from ground.spec import check_spec
from traces.synth import SynthSpec, generate

SPEC: dict[str, Any] = {
    "requests": 4000,
    "arrivals": {"process": "poisson", "rate": 2.0},
    "lengths": {
        "prompt": {"distribution": "uniform", "low": 1, "high": 20},
        "output": {"distribution": "uniform", "low": 1, "high": 20},
    },
    "sessions": {
        "turns": {"distribution": "geometric", "mean": 3},
        "think_time": {"distribution": "exponential", "mean": 2},
    },
}
LABELS = {"models": {"count": 5, "zipf": 1.0}, "priorities": {0: 3, 10: 1}}


def draw(labels: dict[str, Any] | None, seed: int = 1) -> pl.DataFrame:
    return generate(check_spec(SynthSpec, SPEC | ({"labels": labels} if labels else {}), "spec"), seed).requests


def test_labels_change_nothing_else() -> None:
    plain, labelled = draw(None), draw(LABELS)
    assert set(labelled.columns) - set(plain.columns) == {"model", "priority"}
    assert_frame_equal(labelled.select(plain.columns), plain)
    assert_frame_equal(labelled, draw(LABELS))


def test_a_session_keeps_its_labels() -> None:
    kinds = draw(LABELS).group_by("session").agg(pl.col("model", "priority").n_unique())
    assert kinds["model"].unique().to_list() == [1] and kinds["priority"].unique().to_list() == [1]


def test_shares_are_those_asked_for() -> None:
    first = draw(LABELS).group_by("session").agg(pl.col("model", "priority").first())
    count = len(first)
    harmonic = sum(1 / k for k in range(1, 6))
    for rank in range(5):
        share = int((first["model"] == f"model-{rank}").sum()) / count
        expected = 1 / (rank + 1) / harmonic
        assert share == pytest.approx(expected, abs=4 * (expected * (1 - expected) / count) ** 0.5)
    assert int((first["priority"] == 10).sum()) / count == pytest.approx(0.25, abs=4 * (0.1875 / count) ** 0.5)
