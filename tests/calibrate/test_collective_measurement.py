"""Collectives timed between two processes of this machine, into a profile that an engine then uses."""

import json
from pathlib import Path

import polars as pl
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from known_profile import MODEL, make_profile

from calibrate.commands import calibrate
from calibrate.latency import StepLatency
from calibrate.links import collectives_of
from calibrate.microbench.collectives import (
    CollectiveGrid,
    collective_grid,
    errors_of,
    judged,
    measure_collectives,
    repeat_errors,
)
from calibrate.profile import Profile
from ground.errors import UserError

GRID = CollectiveGrid((2,), (1024, 16384), (6144,), rounds=1, budget=0.002)


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(calibrate, [str(argument) for argument in arguments])


def test_two_processes_fill_the_table_of_a_profile_and_a_stopped_run_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "profile"
    make_profile(MODEL, 2).save(out)
    before = Profile.load(out)
    measure_collectives("cpu", GRID, out, force=False)
    profile = Profile.load(out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["profile"], "nothing is left beside it"
    table = profile.tables["collective"]
    assert set(table["operation"]) == {"all_reduce", "all_gather", "reduce_scatter", "all_to_all", "send_recv"}
    assert len(table) == 5 * 2 and set(table["ranks"]) == {2} and set(table["bytes"]) == set(GRID.sizes)
    assert (table["seconds"] > 1e-6).all() and (table["p10"] <= table["p90"]).all() and (table["samples"] >= 3).all()
    assert profile.errors["collective"]["points"] == 10 and profile.errors["collective"]["held_out_points"] == 5
    assert profile.held_out is not None and len(profile.held_out) == 5
    assert profile.model == before.model and set(profile.tables) == {*before.tables, "collective"}

    # Every point of it is found again as it was measured, and a step of two ranks is the longer for it.
    found = collectives_of(profile)
    assert found is not None
    for name, ranks, size, seconds in table.select("operation", "ranks", "bytes", "seconds").iter_rows():
        assert found.seconds(name, ranks, size) == pytest.approx(seconds, rel=1e-9)
    assert StepLatency(profile, MODEL, 2).step((), 4, 400) > StepLatency(before, MODEL, 2).step((), 4, 400)

    with pytest.raises(UserError, match="holds a table of collectives"):
        measure_collectives("cpu", GRID, out, force=False)

    # A journal that has every point but is no profile yet: the run ends without starting a process.
    again = tmp_path / "again"
    partial = tmp_path / ".again.collectives"
    measure_collectives_and_stop(again, partial, out)
    measure_collectives("cpu", GRID, again, force=False)
    assert Profile.load(again).model is None and Profile.load(again).tables["collective"]["seconds"].to_list() == [
        1.0
    ] * len(table)


def measure_collectives_and_stop(out: Path, partial: Path, like: Path) -> None:
    """What a run that was killed behind its last point leaves."""
    from dataclasses import asdict

    from calibrate.microbench.collectives import _key
    from calibrate.microbench.journal import Journal
    from calibrate.microbench.measure import machine_facts

    journal = Journal(partial, machine_facts("cpu") | {"kind": "cpu", "grid": asdict(GRID)})
    for held_out in (False, True):
        for point in GRID.points(held_out=held_out):
            visit = (point, held_out, 0)
            journal.append({"visit": _key(visit), "held_out": held_out, "point": point, "samples": [1.0] * 3})
    journal.close()


def test_what_is_held_out_judges_the_law() -> None:
    rows = [("all_reduce", 2, size, 1e-6 * size) for size in (1024, 4096, 16384)]
    schema = {"operation": pl.String, "ranks": pl.Int64, "bytes": pl.Int64, "seconds": pl.Float64}
    table = pl.DataFrame(rows, schema=schema, orient="row")
    held_out = pl.DataFrame([("all_reduce", 2, 2048, 2 * 2048e-6)], schema=schema, orient="row")
    points = judged(table, held_out)
    assert points["predicted"].to_list() == pytest.approx([2048e-6]) and points["measured"].to_list() == [2 * 2048e-6]
    found = errors_of(len(table), points)
    assert found["points"] == 3 and found["held_out_median"] == pytest.approx(0.5)


def record(round: int, size: int, *samples: float) -> dict[str, object]:
    point = ("all_reduce", 2, size)
    return {"visit": json.dumps((point, False, round)), "held_out": False, "point": point, "samples": samples}


@given(st.lists(st.floats(1e-6, 1.0), min_size=2, max_size=8), st.floats(1.0, 3.0))
def test_two_passes_differ_by_what_the_odd_rounds_take_longer(times: list[float], longer: float) -> None:
    """The least sample of a pass counts, so what disturbs one of them does not."""
    records = [record(number, 1024, *((longer if number % 2 else 1.0) * t for t in times)) for number in range(4)]
    records.append(record(4, 1024, *(9 * time for time in times)))
    found = repeat_errors(records, "cpu")
    assert found["repeat_median"] == pytest.approx(1 - 1 / longer) == pytest.approx(found["repeat_p90"])


def test_one_round_says_nothing_of_another() -> None:
    assert repeat_errors([record(0, 1024, 1.0), record(0, 4096, 1.0)], "cpu") == {}


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("quick", [True, False])
def test_held_out_sizes_lie_between_those_of_the_grid(device: str, quick: bool) -> None:
    grid = collective_grid(device, (2, 4), quick=quick)
    assert not set(grid.held_out) & set(grid.sizes)
    assert min(grid.sizes) < min(grid.held_out) and max(grid.held_out) < max(grid.sizes)
    for point in [*grid.points(held_out=False), *grid.points(held_out=True)]:
        assert point.size % (4 * point.ranks) == 0, "whole numbers for every rank"
    assert {point.ranks for point in grid.points(held_out=False) if point.operation == "send_recv"} == {2}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "neither --model nor --collectives"),
        (("--collectives", "--model", "tiny-llama"), "both --model and --collectives"),
        (("--collectives", "--ranks", "4,2"), "--ranks 4,2: expected rising numbers"),
        (("--collectives", "--ranks", "one"), "--ranks one: expected rising numbers"),
    ],
)
def test_what_cannot_be_measured_is_said_in_one_line(tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    result = invoke("run", "--device", "cpu", "-o", tmp_path / "out", *arguments)
    assert result.exit_code == 2 and said in result.output and "Traceback" not in result.output


def test_more_gpus_than_there_are_is_said_in_one_line(tmp_path: Path) -> None:
    result = invoke("run", "--device", "cuda", "--collectives", "--ranks", 2000, "-o", tmp_path / "out")
    assert result.exit_code == 2 and "--ranks 2000: torch finds" in result.output
    assert json.dumps("out") not in result.output and not (tmp_path / "out").exists()
