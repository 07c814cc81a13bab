"""A back-test: origins that never see the future, errors that mean what they say, work that is not done twice."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from ground.errors import UserError
from sim.fleet.forecasters import FORECASTERS
from sim.study.backtest import COLUMNS, Plan, backtest, plan_backtest, run_fold
from sim.study.forecast_errors import errors, judged, pinball, provisioning, references, replicas
from sim.study.load_series import load_series
from traces.table import Trace

QUICK = ["naive", "seasonal_naive", "holt_winters"]


def loads(count: int, seed: int = 0) -> np.ndarray:
    rate = 10 + 5 * np.sin(2 * np.pi * np.arange(count) / 24)
    return np.random.default_rng(seed).poisson(rate).astype(float)


def trace_of(arrivals: list[float | None]) -> Trace:
    count = len(arrivals)
    table = pl.DataFrame(
        {
            "request_id": range(count),
            "arrival": pl.Series(arrivals, dtype=pl.Float64),
            "prompt_tokens": [10] * count,
            "output_tokens": [3] * count,
        }
    )
    return Trace(table, "test", "requests", count)


@pytest.mark.parametrize("name", FORECASTERS)
def test_nothing_that_comes_after_the_origin_is_known(name: str) -> None:
    """Another future, the same forecast, for every origin before it begins; after it, another one."""
    load = loads(260)
    plan = Plan(260, 160, 5, 2)
    future = plan.run(1)[1]
    other = load.copy()
    other[future:] = 500.0 + np.arange(260 - future)
    for number in range(2):
        one, two = (run_fold(name, each, plan, number, season=24, seed=0) for each in (load, other))
        foreseen = pl.col("origin") <= future
        forecasts = ["origin", "ahead", "mean", "q0.1", "q0.5", "q0.9"]
        assert_frame_equal(
            one.filter(foreseen).select(forecasts), two.filter(foreseen).select(forecasts), check_exact=True
        )
        if number == 1:
            assert not one.filter(~foreseen).select(forecasts).equals(two.filter(~foreseen).select(forecasts))


@given(st.integers(20, 500), st.integers(1, 9), st.floats(0.2, 0.8), st.integers(1, 4))
def test_every_interval_after_the_first_history_is_predicted_once(
    intervals: int, horizon: int, history: float, fits: int
) -> None:
    try:
        plan = plan_backtest(intervals, horizon, history=history, fits=fits)
    except UserError as error:
        assert "expected" in error.message
        assert (intervals - int(intervals * history)) // horizon < max(2, fits)
        return
    runs = [list(plan.run(number)) for number in range(fits)]
    assert [origin for run in runs for origin in run] == list(plan.origins)
    assert all(runs)
    predicted = [origin + ahead for origin in plan.origins for ahead in range(horizon)]
    assert predicted == list(range(plan.first, plan.first + len(predicted)))
    assert intervals - horizon < plan.first + len(predicted) <= intervals


@given(st.lists(st.floats(0, 100), min_size=1, max_size=50), st.floats(0, 100), st.floats(0.01, 0.99))
def test_pinball_loss_is_least_at_the_quantile(load: list[float], other: float, level: float) -> None:
    values = np.array(load)
    at = float(np.quantile(values, level, method="inverted_cdf"))
    least = pinball(values, np.full(len(load), at), level)
    assert 0 <= least <= pinball(values, np.full(len(load), other), level) * (1 + 1e-9) + 1e-9
    assert pinball(values, values, level) == 0


def predictions(load: list[float], mean: list[float], low: list[float], high: list[float]) -> pl.DataFrame:
    count = len(load)
    return pl.DataFrame(
        {
            "forecaster": ["x"] * count,
            "origin": [0, 0, 2, 2][:count],
            "ahead": [1, 2, 1, 2][:count],
            "interval": range(count),
            "load": load,
            "mean": mean,
            "q0.1": low,
            "q0.5": mean,
            "q0.9": high,
        },
        schema=COLUMNS,
    )


def test_errors_by_hand() -> None:
    table = predictions([10.0, 0.0, 20.0, 5.0], [8.0, 1.0, 25.0, 5.0], [5.0, 0.5, 21.0, 5.0], [9.0, 2.0, 30.0, 5.0])
    found = judged(table, 60.0, None, 1)
    assert found["mape"] == pytest.approx((0.2 + 0.25 + 0.0) / 3)  # the second interval has no load
    assert found["without_load"] == 1
    assert found["wape"] == pytest.approx(8 / 35) and found["mae"] == pytest.approx(2.0)
    assert found["pinball"]["0.5"] == pytest.approx(1.0)
    assert found["pinball"]["0.9"] == pytest.approx((0.9 * 1 + 0.1 * 2 + 0.1 * 10 + 0) / 4)
    assert found["within"] == 0.25
    assert [entry["mae"] for entry in found["by_ahead"]] == pytest.approx([3.5, 0.5])
    nothing = errors(predictions([0.0, 0.0], [1.0, 0.0], [0.0, 0.0], [1.0, 1.0]))
    assert nothing["mape"] is None and nothing["wape"] is None and nothing["mae"] == 0.5


def test_provisioning_by_hand() -> None:
    """Minutes of two GPUs; a replica serves 10: needed are 1, 0, 2, 3, and given 2, 1, 1, 3."""
    table = predictions([10.0, 0.0, 20.0, 21.0], [0.0] * 4, [0.0] * 4, [10.5, 1.0, 10.0, 30.0])
    minute = 2 / 60
    cost = judged(table, 60.0, 10.0, 2)["provisioning"]["0.9"]
    assert cost == pytest.approx({"gpu_hours": 7 * minute, "wasted": 2 * minute, "missing": minute, "short": 0.25})
    known = references(np.array([4.0, 35.0]), table, 60.0, 10.0, 2)
    assert known["needed"] == pytest.approx({"gpu_hours": 6 * minute, "wasted": 0, "missing": 0, "short": 0})
    assert known["fixed"] == pytest.approx({"gpu_hours": 16 * minute, "wasted": 10 * minute, "missing": 0, "short": 0})


@given(st.integers(0, 1000), st.integers(1, 50))
def test_a_whole_number_of_capacities_needs_as_many_replicas(count: int, tenths: int) -> None:
    capacity = tenths / 10
    assert replicas(np.array([count * capacity]), capacity) == count
    assert replicas(np.array([count * capacity + 0.01 * capacity]), capacity) == count + 1


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1))
def test_what_is_given_is_what_is_needed_and_wasted_less_what_is_missing(pairs: list[tuple[int, int]]) -> None:
    needed, given = np.array(pairs).T
    cost = provisioning(needed, given, 90.0, 4)
    assert cost["gpu_hours"] == pytest.approx(needed.sum() * 0.1 + cost["wasted"] - cost["missing"])
    assert 0 <= cost["short"] <= 1 and (cost["short"] > 0) == (cost["missing"] > 0)


def test_load_is_what_arrives_in_whole_intervals() -> None:
    series = load_series(trace_of([0.0, 1.0, 9.9, 10.0, None, 39.9, 41.0]), 10.0)
    assert series.load.tolist() == [0.3, 0.1, 0.0, 0.1] and series.left_out == 1
    tokens = load_series(trace_of([5.0, 6.0, 15.0, 26.0]), 10.0, "tokens")
    assert tokens.load.tolist() == [2.6, 1.3] and tokens.unit == "tokens/s"
    with pytest.raises(UserError, match=r"requests: found arrivals over 3 s, expected at least two intervals of 2 s"):
        load_series(trace_of([0.0, 3.0]), 2.0)
    with pytest.raises(UserError, match="found arrivals over 0 s"):
        load_series(trace_of([None]), 2.0)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 5), st.integers(0, 40))
def test_killed_at_any_moment_it_goes_on_and_ends_the_same(
    tmp_path_factory: pytest.TempPathFactory, done: int, origins: int
) -> None:
    load, plan = loads(300), Plan(300, 200, 5, 2)
    whole, halved = (tmp_path_factory.mktemp(name) for name in ("whole", "halved"))
    expected, _ = backtest(QUICK, load, plan, whole, season=24, seed=0, skip=False)

    class Killed(Exception):
        pass

    begun: list[tuple[str, int]] = []
    counted = 0

    def begin(name: str, number: int) -> None:
        begun.append((name, number))
        if len(begun) > done + 1:
            raise Killed

    def count(more: int) -> None:
        nonlocal counted
        counted += more
        if done and counted == origins + 1:
            raise Killed

    with pytest.raises(Killed):
        backtest(QUICK, load, plan, halved, season=24, seed=0, skip=False, on_fold=begin, on_origin=count)
        raise Killed
    again: list[tuple[str, int]] = []
    total = 0

    def add(more: int) -> None:
        nonlocal total
        total += more

    kept = len(list((halved / "folds").glob("[!.]*.parquet")))
    found, _ = backtest(
        QUICK, load, plan, halved, season=24, seed=0, skip=False,
        on_fold=lambda name, number: again.append((name, number)), on_origin=add,
    )  # fmt: skip
    assert_frame_equal(found, expected, check_exact=True)
    assert len(again) == len(QUICK) * plan.fits - kept and total == len(QUICK) * len(plan.origins)


def test_a_forecaster_that_cannot_is_left_out_or_refused(tmp_path: Path) -> None:
    load, plan = np.random.default_rng(0).random(100), Plan(100, 60, 5, 2)
    told = 0

    def add(more: int) -> None:
        nonlocal told
        told += more

    table, left_out = backtest(
        ["seasonal_naive", "naive"], load, plan, tmp_path, season=None, seed=0, skip=True, on_origin=add
    )
    assert table["forecaster"].unique().to_list() == ["naive"] and told == 2 * len(plan.origins)
    assert left_out["seasonal_naive"].startswith("seasonal_naive: found no season")
    with pytest.raises(UserError, match="found no season"):
        backtest(["seasonal_naive"], load, plan, tmp_path, season=None, seed=0, skip=False)
    with pytest.raises(UserError, match="no forecaster can predict this load"):
        backtest(["seasonal_naive"], load, plan, tmp_path, season=None, seed=0, skip=True)
