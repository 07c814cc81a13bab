"""LLMServingSim's batches of unequal contexts: when they are read, and which model of them is named."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from llmservingsim_folders import META, write_csv, write_variant

from calibrate.importers.llmservingsim import read
from calibrate.latency import StepLatency
from ground.errors import UserError

SKEW = "n,nb,pc,kp,kvs,kv_big,t_skew_us,t_mean_us"


@pytest.fixture
def variant(tmp_path: Path) -> Path:
    return write_variant(tmp_path)


def skew_rows(excess: float) -> list[tuple[Any, ...]]:
    return [
        (n, n // 4, chunk, 0, short, short * ratio, 100.0 * (1 + excess * ratio), 100.0)
        for chunk in (0, 64)
        for n in (8, 32)
        for short in (64, 256)
        for ratio in (2, 4)
    ]


def test_unequal_batches_are_read_only_where_meta_says_so(variant: Path) -> None:
    write_csv(variant / "tp1" / "skew.csv", SKEW, skew_rows(0.2))
    off = read(str(variant), None, None)
    assert "skew" not in off.tables and "skew_model" not in off.grid and not off.errors
    (variant / "meta.yaml").write_text(yaml.safe_dump({k: v for k, v in META.items() if k != "skew_profile"}))
    assert "skew" not in read(str(variant), None, None).tables

    (variant / "meta.yaml").write_text(yaml.safe_dump(META | {"skew_profile": {"enabled": True}}))
    on = read(str(variant), None, None)
    assert on.grid["skew_model"] in ("waves", "neighbours")
    assert {"skew.mean_context", "skew.neighbours"} <= on.errors.keys()
    assert all(0 <= error["held_out_median"] <= error["held_out_p90"] for error in on.errors.values())
    assert {error["held_out_points"] for error in on.errors.values()} == {16.0}
    named = on.errors[f"skew.{on.grid['skew_model']}"]["held_out_p90"]
    assert named == min(error["held_out_p90"] for error in on.errors.values())
    row = on.tables["skew"].row(0, named=True)
    assert row["seconds"] / row["equal_seconds"] == pytest.approx(1.4)
    times = StepLatency(on, on.shape)
    assert times.skew is not None
    assert StepLatency(off, off.shape).skew is None


def test_where_the_mean_context_predicts_best_no_model_is_named(variant: Path) -> None:
    (variant / "meta.yaml").write_text(yaml.safe_dump(META | {"skew_profile": {"enabled": True}}))
    write_csv(variant / "tp1" / "skew.csv", SKEW, skew_rows(0.0))
    profile = read(str(variant), None, None)
    assert "skew_model" not in profile.grid
    assert profile.errors["skew.mean_context"]["held_out_p90"] == 0.0


def test_a_model_is_named_for_its_worst_batches_and_not_its_usual_ones(variant: Path) -> None:
    """Two thirds take no longer for being unequal, the others twice as long: the mean is right more often than not."""
    (variant / "meta.yaml").write_text(yaml.safe_dump(META | {"skew_profile": {"enabled": True}}))
    shapes = [(short, ratio) for short in (32, 64, 128, 256) for ratio in (2, 8) if ratio == 2 or short in (64, 128)]
    rows = [
        (n, n // 4, chunk, 0, short, short * ratio, 200.0 if ratio == 8 else 100.0, 100.0)
        for chunk in (0, 64)
        for n in (8, 32)
        for short, ratio in shapes
    ]
    write_csv(variant / "tp1" / "skew.csv", SKEW, rows)
    profile = read(str(variant), None, None)
    assert profile.errors["skew.mean_context"]["held_out_median"] == 0.0
    assert profile.errors["skew.neighbours"]["held_out_median"] > 0.0
    assert profile.grid["skew_model"] == "neighbours"


def test_a_spoilt_skew_table_is_named(variant: Path) -> None:
    (variant / "meta.yaml").write_text(yaml.safe_dump(META | {"skew_profile": {"enabled": True}}))
    with pytest.raises(UserError, match=r"skew.csv: no such file"):
        read(str(variant), None, None)
    write_csv(variant / "tp1" / "skew.csv", SKEW.replace("kv_big", "big"), skew_rows(0.2))
    with pytest.raises(UserError, match=r"skew.csv: column kv_big is missing; found n, nb"):
        read(str(variant), None, None)
