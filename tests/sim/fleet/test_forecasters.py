"""Forecasters: exact where the load repeats itself, ordered, and never wiser than the past."""

import json
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ground.errors import UserError
from sim.fleet.forecasters import FORECASTERS
from sim.fleet.forecasters.arima import Arima
from sim.fleet.forecasters.forecaster import Forecaster, ForecasterSetting
from sim.fleet.forecasters.history import find_season, without_leading_zeros
from sim.fleet.forecasters.holt_winters import HoltWinters, Smoothing, smooth
from sim.fleet.forecasters.kalman import filtered

QUICK = ("naive", "seasonal_naive", "holt_winters", "kalman")

LOADS = st.floats(0, 1e6, allow_subnormal=False)


def made(name: str, history: np.ndarray, **setting: object) -> Forecaster:
    forecaster = FORECASTERS[name](ForecasterSetting(**{"horizon": 5, **setting}))  # type: ignore[arg-type]
    forecaster.fit(history)
    return forecaster


def noisy_season(count: int, period: int, seed: int = 0) -> np.ndarray:
    """Poisson counts a minute around a sine."""
    rate = 60 * (2 + np.sin(2 * np.pi * np.arange(count) / period))
    return np.random.default_rng(seed).poisson(rate) / 60


@given(st.lists(LOADS, min_size=2, max_size=12), st.integers(2, 5), st.integers(0, 30), st.integers(1, 20))
def test_seasonal_naive_is_exact_where_a_season_repeats(
    season: list[float], seasons: int, more: int, ahead: int
) -> None:
    whole = np.tile(season, seasons + 40)
    history, now = whole[: seasons * len(season)], seasons * len(season) + more
    forecast = made("seasonal_naive", history, season=len(season), horizon=20).predict(whole[:now], ahead)
    assert forecast.mean.tolist() == whole[now : now + ahead].tolist()
    assert forecast.quantiles.tolist() == [forecast.mean.tolist()] * 3


@given(LOADS, st.integers(10, 50), st.integers(1, 5))
def test_naive_is_exact_on_a_constant_load(load: float, count: int, ahead: int) -> None:
    forecast = made("naive", np.full(count, load)).predict(np.full(count, load), ahead)
    assert forecast.mean.tolist() == [load] * ahead == forecast.at(0.9).tolist()


def test_naive_quantiles_are_those_of_its_past_errors() -> None:
    """A load that rises by 0, 1, 2, ... 10: a tenth of the steps rises by less than 1."""
    history = np.cumsum(np.arange(11.0))
    forecast = made("naive", history, horizon=1, levels=(0.1, 0.5, 0.75)).predict(history, 1)
    assert forecast.mean.tolist() == [55.0]
    assert forecast.quantiles[:, 0] == pytest.approx([55 + 1.9, 55 + 5.5, 55 + 7.75])


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from(QUICK),
    st.lists(st.floats(0, 100), min_size=60, max_size=120),
    st.lists(st.floats(0.01, 0.99), min_size=2, max_size=5, unique=True).map(sorted),
    st.integers(1, 5),
)
def test_quantiles_are_ordered_and_no_load_is_negative(
    name: str, loads: list[float], levels: list[float], ahead: int
) -> None:
    history = np.array(loads)
    forecaster = made(name, history, season=7, levels=tuple(levels))
    forecast = forecaster.predict(history[: forecaster.least + 20], ahead)
    assert forecast.quantiles.shape == (len(levels), ahead) and forecast.mean.shape == (ahead,)
    assert (np.diff(forecast.quantiles, axis=0) >= 0).all()
    assert forecast.quantiles.min() >= 0 and forecast.mean.min() >= 0
    assert forecast.at(levels[1]).tolist() == forecast.quantiles[1].tolist()


@pytest.mark.parametrize("name", FORECASTERS)
def test_the_same_again_and_nothing_is_kept_of_a_prediction(name: str) -> None:
    loads = noisy_season(300, 24)
    one, other = (made(name, loads[:200], season=24, seed=3) for _ in range(2))
    before = one.predict(loads[:200], 5)
    one.predict(loads[:250] * 9, 5)
    again = other.predict(loads[:200], 5)
    for forecast in (one.predict(loads[:200], 5), again):
        assert forecast.mean.tolist() == before.mean.tolist()
        assert forecast.quantiles.tolist() == before.quantiles.tolist()
    assert one.predict(loads[:200], 2).mean == pytest.approx(before.mean[:2])


@pytest.mark.parametrize("name", FORECASTERS)
def test_only_the_end_of_the_load_is_looked_at(name: str) -> None:
    """As much as `least` suffices; a forecaster that is given more may use more."""
    loads = noisy_season(400, 24)
    forecaster = made(name, loads[:300], season=24)
    assert forecaster.predict(loads[-forecaster.least :], 5).mean.shape == (5,)
    ended = forecaster.predict(loads[-250:], 5)
    assert (
        forecaster.predict(np.concatenate((np.full(100, 77.0), loads[-250:])), 5).mean.tolist() == ended.mean.tolist()
    )


@pytest.mark.parametrize("name", FORECASTERS)
def test_a_history_too_short_is_an_error_that_says_so(name: str) -> None:
    with pytest.raises(UserError, match=rf"^{name}: found .* expected"):
        made(name, np.arange(6.0))


@pytest.mark.parametrize("name", ["naive", "holt_winters", "arima", "kalman", "lstm"])
@pytest.mark.parametrize("load", [0.0, 3.0])
def test_a_load_that_never_changes_stays(name: str, load: float) -> None:
    history = np.full(150, load)
    forecast = made(name, history).predict(history, 5)
    assert forecast.mean == pytest.approx([load] * 5, abs=1e-2)
    assert np.isfinite(forecast.quantiles).all()


@settings(max_examples=20, deadline=None)
@given(st.integers(7, 60), st.integers(5, 10), st.integers(0, 100))
def test_the_season_is_found(period: int, seasons: int, seed: int) -> None:
    """Of a load in which every interval of the season differs from the others by chance."""
    random = np.random.default_rng(seed)
    history = np.tile(random.random(period) * 10, seasons)
    assert find_season(history) == period
    assert find_season(history + random.normal(0, 0.3, len(history))) == period


def test_noise_and_a_trend_have_no_season() -> None:
    random = np.random.default_rng(0)
    assert all(find_season(random.normal(size=500)) is None for _ in range(20))
    assert find_season(np.full(100, 3.3)) is None
    assert find_season(np.zeros(100)) is None


def test_a_day_is_found_in_a_week_of_counts() -> None:
    found = find_season(noisy_season(7 * 288, 288))
    assert found is not None and abs(found - 288) <= 288 * 0.02


def test_what_came_before_the_first_request_is_not_learnt_from() -> None:
    assert without_leading_zeros(np.array([0.0, 0.0, 2.0, 0.0])).tolist() == [2.0, 0.0]
    assert without_leading_zeros(np.zeros(3)).tolist() == [0.0] * 3
    loads = noisy_season(200, 24)
    with_zeros = np.concatenate((np.zeros(500), loads))
    for name in ("holt_winters", "arima", "kalman"):
        one, other = made(name, loads, season=24), made(name, with_zeros, season=24)
        assert one.predict(loads, 5).quantiles.tolist() == other.predict(loads, 5).quantiles.tolist()


@settings(max_examples=25, deadline=None)
@given(st.floats(0.01, 0.99), st.floats(0.0, 0.99), st.floats(0.0, 0.99), st.floats(0.8, 0.99), st.integers(0, 50))
def test_smoothing_is_that_of_statsmodels(level: float, trend: float, season: float, damping: float, seed: int) -> None:
    from statsmodels.tsa.holtwinters import ExponentialSmoothing

    random = np.random.default_rng(seed)
    loads, first = random.random(40) * 10, random.normal(size=6)
    theirs = ExponentialSmoothing(
        loads,
        trend="add",
        damped_trend=True,
        seasonal="add",
        seasonal_periods=6,
        initialization_method="known",
        initial_level=5.0,
        initial_trend=0.0,
        initial_seasonal=first,
    ).fit(
        smoothing_level=level,
        smoothing_trend=trend,
        smoothing_seasonal=season * (1 - level),
        damping_trend=damping,
        optimized=False,
    )
    states = smooth(loads, 5.0, first, Smoothing(level, trend, season * (1 - level), damping))
    assert states.level == pytest.approx(theirs.level)
    assert states.trend == pytest.approx(theirs.trend)
    assert states.season[6:] == pytest.approx(theirs.season)


def test_holt_winters_follows_a_season_and_a_trend() -> None:
    time = np.arange(20 * 12)
    loads = 50 + 0.1 * time + 10 * np.sin(2 * np.pi * time / 12)
    forecaster = made("holt_winters", loads[:200], season=12)
    assert isinstance(forecaster, HoltWinters)
    assert forecaster.predict(loads[:-5], 5).mean == pytest.approx(loads[-5:], rel=0.02)


def test_arima_finds_the_order_of_an_autoregression() -> None:
    random = np.random.default_rng(5)
    loads = [20.0]
    for noise in random.normal(size=600):
        loads.append(20 + 0.8 * (loads[-1] - 20) + noise)
    forecaster = made("arima", np.array(loads))
    assert isinstance(forecaster, Arima) and forecaster.order[:2] == (1, 0) and not forecaster.log
    forecast = forecaster.predict(np.array([*loads, 30.0]), 5)
    # What is expected of it: 10 above its mean, and 0.8 of that an interval later.
    assert forecast.mean - 20 == pytest.approx(10 * 0.8 ** np.arange(1, 6), abs=1.0)
    # Of normal errors with deviation 1, a tenth lies above 1.28.
    assert forecast.at(0.9)[0] - forecast.mean[0] == pytest.approx(1.2816, rel=0.1)


def test_arima_looks_at_the_logarithm_where_the_load_itself_is_noise() -> None:
    history = np.random.default_rng(5).lognormal(0, 0.5, 150)
    forecaster = made("arima", history)
    assert isinstance(forecaster, Arima) and forecaster.log
    assert forecaster.predict(history, 1).mean[0] == pytest.approx(history.mean(), rel=0.1)


def autoregression(count: int) -> np.ndarray:
    random = np.random.default_rng(5)
    loads = [20.0]
    for noise in random.normal(size=count):
        loads.append(20 + 0.8 * (loads[-1] - 20) + noise)
    return np.array(loads)


def test_an_updated_arima_keeps_its_order_and_follows_the_load() -> None:
    """Fitted on a load around 20, then told that it has been around 120 for long."""
    loads = autoregression(600)
    forecaster, fitted = made("arima", loads), made("arima", loads + 100)
    assert isinstance(forecaster, Arima) and isinstance(fitted, Arima)
    order = forecaster.order
    for _ in range(10):
        forecaster.update(loads + 100)
    assert forecaster.order == order == fitted.order
    ahead, expected = (one.predict(loads + 100, 5).mean for one in (forecaster, fitted))
    assert ahead == pytest.approx(expected, rel=0.01)
    forecaster.update(loads)
    assert forecaster.predict(loads, 5).mean == pytest.approx(made("arima", loads).predict(loads, 5).mean, rel=0.02)


@pytest.mark.parametrize("name", [name for name in FORECASTERS if name not in ("arima", "lstm")])
def test_an_update_is_a_fit_where_nothing_is_kept(name: str) -> None:
    loads = noisy_season(200, 24)
    updated, fitted = made(name, loads[:120], season=24), made(name, loads, season=24)
    updated.update(loads)
    assert updated.predict(loads, 3).quantiles.tolist() == fitted.predict(loads, 3).quantiles.tolist()


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(0, 1e4), min_size=2, max_size=60))
def test_the_filter_is_that_of_statsmodels(loads: list[float]) -> None:
    from statsmodels.tsa.statespace.structural import UnobservedComponents

    # Dynamo begins at the first load, of which the filter then learns nothing.
    model = UnobservedComponents([np.nan, *loads[1:]], "lltrend")
    model.ssm.initialize_known(np.array([loads[0], 0.0]), 1000.0 * np.eye(2))
    model.update(np.array([10.0, 1.0, 0.1]))
    theirs = model.ssm.filter().filtered_state.T
    assert filtered(np.array(loads)) == pytest.approx(theirs, rel=1e-6, abs=1e-6)


def test_kalman_is_exact_on_a_line_and_takes_the_middle_of_a_jump() -> None:
    line = 3.0 + 2.0 * np.arange(100)
    forecast = made("kalman", line).predict(line, 5)
    assert forecast.mean == pytest.approx(3.0 + 2.0 * np.arange(100, 105), rel=1e-3)
    jump = np.array([10.0] * 100 + [20.0])
    assert 10.0 < made("kalman", jump).predict(jump, 1).mean[0] < 20.0


@pytest.mark.parametrize("name", FORECASTERS)
def test_a_forecast_says_of_what_levels_it_knows(name: str) -> None:
    history = noisy_season(200, 24)
    forecast = made(name, history, season=24).predict(history, 3)
    assert forecast.levels == (0.1, 0.5, 0.9)
    with pytest.raises(ValueError):
        forecast.at(0.8)
    json.dumps(forecast.mean.tolist(), allow_nan=False)


@pytest.mark.parametrize(
    ("name", "package"), [("holt_winters", "statsmodels"), ("arima", "statsmodels"), ("lstm", "torch")]
)
def test_a_missing_package_is_an_error_that_names_it(name: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [package, *(each for each in sys.modules if each.startswith(f"{package}."))]:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=f"{name}: needs the package {package}"):
        FORECASTERS[name](ForecasterSetting(5))
