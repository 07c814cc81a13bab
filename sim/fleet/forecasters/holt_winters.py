"""Exponential smoothing of level, damped trend and season (Holt, 1957; Winters, 1960; Gardner and McKenzie, 1985)."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np

from sim.fleet.forecasters.errors import PastErrors
from sim.fleet.forecasters.forecaster import Floats, Forecast, Forecaster, ForecasterSetting
from sim.fleet.forecasters.history import find_season, need, without_leading_zeros
from sim.fleet.forecasters.statsmodels_package import statsmodels

_SEASONS = 4  # how much of the load until now is smoothed for a prediction
_INTERVALS = 200  # the same, where there is no season


@dataclass(frozen=True)
class Smoothing:
    """The weights of what is new; `damping` multiplies the trend from interval to interval."""

    level: float
    trend: float
    season: float
    damping: float


@dataclass(frozen=True)
class States:
    """After each interval that was smoothed: its level and trend, (n,), and season, of which the first `period` values
    were there before, (period + n,)."""

    level: Floats
    trend: Floats
    season: Floats


class HoltWinters(Forecaster):
    """Additive in trend and season. statsmodels estimates the weights; without a season it is Holt's method."""

    def __init__(self, setting: ForecasterSetting) -> None:
        super().__init__(setting)
        self._holtwinters = statsmodels("tsa.holtwinters", "holt_winters")

    def fit(self, history: Floats) -> None:
        history = without_leading_zeros(history)
        self._period = period = self.setting.season or find_season(history) or 1
        horizon = self.setting.horizon
        # The first season says where smoothing begins; the second is the least there is to smooth.
        need(history, 2 * period + horizon + 10, "holt_winters")
        self._most = _SEASONS * period if period > 1 else _INTERVALS
        self.least = 2 * period + 1 if period > 1 else 2
        level, season = _beginning(history, period)
        loads = history[period:]
        self.smoothing = self._estimate(loads, level, season)
        states = smooth(loads, level, season, self.smoothing)
        errors = []
        for ahead in range(1, horizon + 1):
            before = np.arange(len(loads) - ahead)
            errors.append(loads[ahead:] - _extrapolated(states, before, ahead, self.smoothing.damping, period))
        self._errors = PastErrors(errors, self.setting.levels)

    def predict(self, recent: Floats, horizon: int) -> Forecast:
        recent, period = recent[-self._most :], self._period
        states = smooth(recent[period:], *_beginning(recent, period), self.smoothing)
        last = np.array([len(recent) - period - 1])
        damping = self.smoothing.damping
        prediction = [_extrapolated(states, last, ahead, damping, period)[0] for ahead in range(1, horizon + 1)]
        return self._errors.around(np.array(prediction))

    def _estimate(self, loads: Floats, level: float, season: Floats) -> Smoothing:
        seasonal = len(season) > 1
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the optimiser stopped early is no news; its best weights stand
            found = self._holtwinters.ExponentialSmoothing(
                loads,
                trend="add",
                damped_trend=True,
                seasonal="add" if seasonal else None,
                seasonal_periods=len(season) if seasonal else None,
                initialization_method="known",
                initial_level=level,
                initial_trend=0.0,
                initial_seasonal=season if seasonal else None,
            ).fit()
        weights = found.params
        return Smoothing(
            level=float(weights["smoothing_level"]),
            trend=float(weights["smoothing_trend"]),
            season=float(weights["smoothing_seasonal"]) if seasonal else 0.0,
            damping=float(weights["damping_trend"]),
        )


def smooth(loads: Floats, level: float, season: Floats, smoothing: Smoothing) -> States:
    """Run the smoothing equations over `loads`, from a level, no trend, and one season (one zero: there is none).

    level(t) = a·(y(t) − season(t − m)) + (1 − a)·(level(t − 1) + d·trend(t − 1)),
    trend(t) = b·(level(t) − level(t − 1)) + (1 − b)·d·trend(t − 1),
    season(t) = c·(y(t) − level(t − 1) − d·trend(t − 1)) + (1 − c)·season(t − m): Hyndman and Athanasopoulos,
    Forecasting: Principles and Practice, 3rd edition, section 8.3, with the damping of 8.2.
    """
    trend = 0.0
    levels, trends, seasons = [], [], season.tolist()
    for place, load in enumerate(loads.tolist()):
        expected = level + smoothing.damping * trend
        old_season = seasons[place]
        new_level = smoothing.level * (load - old_season) + (1 - smoothing.level) * expected
        trend = smoothing.trend * (new_level - level) + (1 - smoothing.trend) * smoothing.damping * trend
        level = new_level
        seasons.append(smoothing.season * (load - expected) + (1 - smoothing.season) * old_season)
        levels.append(level)
        trends.append(trend)
    return States(np.array(levels), np.array(trends), np.array(seasons))


def _beginning(loads: Floats, period: int) -> tuple[float, Floats]:
    """The level and the season that the first season of `loads` shows."""
    first = loads[:period]
    level = float(first.mean())
    return level, first - level


def _extrapolated(states: States, places: np.ndarray, ahead: int, damping: float, period: int) -> Floats:
    """What is predicted after each of `places`, `ahead` intervals ahead."""
    trends = float(np.sum(damping ** np.arange(1, ahead + 1)))
    season = states.season[places + 1 + (ahead - 1) % period]
    result: Floats = states.level[places] + trends * states.trend[places] + season
    return result
