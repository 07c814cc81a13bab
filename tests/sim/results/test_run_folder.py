"""A run's folder reads back as written, byte for byte the same each time, and says what is wrong with it."""

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal
from run_tables import queue_run

from ground.assumption import Assumption
from ground.errors import UserError
from sim.results.folder import Run, read_run, write_run
from sim.results.metrics import compute
from sim.results.slo import Slo
from sim.results.tables import EVENTS

ASSUMPTIONS = [Assumption("engine.host_overhead", 0.0012, "s", "measured", "profile of a CPU"),
               Assumption("engine.preset", "vllm-0.19", "", "user", "scenario")]  # fmt: skip
SCENARIO = {"name": "tëst", "engine": {"max_num_seqs": 16, "capture": [1, 2]}, "slo": {"ttft": 0.5, "e2e": None}}


def write(folder: Path, requests: pl.DataFrame, steps: pl.DataFrame, **more: Any) -> None:
    metrics = compute(requests, steps, slo=Slo(ttft=0.5), gpus=2, gpu_hour_price=None, kv_blocks_total=None)
    write_run(folder, Run(requests, steps, metrics, SCENARIO, ASSUMPTIONS), **more)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "mine"
    write(folder, *queue_run(150))
    return folder


@pytest.fixture
def copy(run_folder: Path, tmp_path: Path) -> Path:
    for file in run_folder.iterdir():
        if file.name != "report.html":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def test_reads_back_as_written(run_folder: Path) -> None:
    requests, steps = queue_run(150)
    run = read_run(run_folder)
    assert_frame_equal(run.requests, requests)
    assert_frame_equal(run.steps, steps)
    assert run.metrics["requests"]["total"] == 150
    assert (run.scenario, run.assumptions, run.name) == (SCENARIO, ASSUMPTIONS, "mine")
    assert (run_folder / "report.html").stat().st_size > 10_000


def test_equal_tables_give_equal_bytes(run_folder: Path, tmp_path: Path) -> None:
    requests, steps = queue_run(150)
    in_pieces = pl.concat([requests[:40], requests[40:41], requests[41:]], rechunk=False)
    write(tmp_path / "again", in_pieces.select(reversed(in_pieces.columns)), steps)
    for name in ("requests.parquet", "steps.parquet", "metrics.json", "scenario.yaml", "assumptions.json"):
        assert (tmp_path / "again" / name).read_bytes() == (run_folder / name).read_bytes(), name


def test_further_columns_are_kept(tmp_path: Path) -> None:
    requests, steps = queue_run(20)
    write(tmp_path / "more", requests.with_columns(reason=pl.lit("none")), steps)
    assert read_run(tmp_path / "more").requests.columns == [*requests.columns, "reason"]


def test_a_full_folder_is_replaced_only_by_force(copy: Path) -> None:
    with pytest.raises(UserError, match="not empty"):
        write(copy, *queue_run(20))
    assert len(read_run(copy).requests) == 150
    write(copy, *queue_run(20), force=True)
    assert len(read_run(copy).requests) == 20


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    requests, steps = queue_run(20)
    with pytest.raises(pl.exceptions.PolarsError):
        write(tmp_path / "half", requests, steps.drop("running"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["requests.parquet", "steps.parquet", "metrics.json", "scenario.yaml"])
def test_a_missing_or_broken_file_is_named(copy: Path, name: str) -> None:
    (copy / name).write_text("{")
    with pytest.raises(UserError, match=rf"{name}: cannot be (read|parsed)"):
        read_run(copy)
    (copy / name).unlink()
    with pytest.raises(UserError, match=rf"{name}: (is missing|cannot be read)"):
        read_run(copy)


def test_a_run_without_a_table_of_events_is_read(copy: Path, tmp_path: Path) -> None:
    """As those are that were written before there was one; written again it has none either."""
    assert read_run(copy).has_events
    (copy / "events.parquet").unlink()
    run = read_run(copy)
    assert not run.has_events and run.events.is_empty() and dict(run.events.schema) == EVENTS
    write_run(tmp_path / "again", run)
    assert not (tmp_path / "again" / "events.parquet").exists()
    (copy / "events.parquet").write_text("{")
    with pytest.raises(UserError, match=r"events\.parquet: cannot be read"):
        read_run(copy)


def test_a_missing_or_mistyped_column_is_named(copy: Path) -> None:
    requests = pl.read_parquet(copy / "requests.parquet")
    requests.drop("queue").write_parquet(copy / "requests.parquet")
    with pytest.raises(UserError, match=r"requests\.parquet: column 'queue' is missing"):
        read_run(copy)
    requests.with_columns(pl.col("arrival").cast(pl.String)).write_parquet(copy / "requests.parquet")
    with pytest.raises(UserError, match=r"column 'arrival' has type String; expected Float64"):
        read_run(copy)


def test_a_wrong_shape_is_named(copy: Path) -> None:
    (copy / "assumptions.json").write_text(json.dumps([{"name": "x"}]))
    with pytest.raises(UserError, match=r"assumptions\.json: entry 0"):
        read_run(copy)
    (copy / "metrics.json").write_text("[]")
    with pytest.raises(UserError, match=r"metrics\.json: holds a list; expected a dict"):
        read_run(copy)
    with pytest.raises(UserError, match="is no folder"):
        read_run(copy / "metrics.json")
