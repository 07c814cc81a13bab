"""A local linear trend, filtered (Kalman, 1960; Harvey, 1989), with the variances of Dynamo's planner."""

from __future__ import annotations

import numpy as np

from sim.fleet.forecasters.errors import PastErrors
from sim.fleet.forecasters.forecaster import Floats, Forecast, Forecaster
from sim.fleet.forecasters.history import need, without_leading_zeros

# Of an interval's change of level and trend, and of what is seen: `kalman_q_level`, `kalman_q_trend`, `kalman_r` of
# ai-dynamo/dynamo (components/src/dynamo/planner/config/defaults.py). Only their ratios matter once it has begun.
_LEVEL, _TREND, _SEEN = 1.0, 0.1, 10.0
_BEGINNING = 1000.0  # variance of the first level and trend, which is nought
_MOST = 1000  # intervals at the history's end to learn from
_RECENT = 200  # intervals to filter for a prediction; what was before has faded
_LEAST = 5


class Kalman(Forecaster):
    """Level and trend are random walks, the load is the level and noise. Its quantiles are those of its past errors."""

    def fit(self, history: Floats) -> None:
        history = without_leading_zeros(history)[-_MOST:]
        horizon = self.setting.horizon
        need(history, _LEAST + horizon, "kalman")
        self.least = 2
        states = filtered(history)
        errors = [
            history[ahead:] - (states[:-ahead, 0] + ahead * states[:-ahead, 1]) for ahead in range(1, horizon + 1)
        ]
        self._errors = PastErrors(errors, self.setting.levels)

    def predict(self, recent: Floats, horizon: int) -> Forecast:
        level, trend = filtered(recent[-_RECENT:])[-1]
        return self._errors.around(level + trend * np.arange(1, horizon + 1))


def filtered(loads: Floats) -> Floats:
    """(n, 2): the expected level and trend after each of n loads, of which there is at least one."""
    states = np.empty((len(loads), 2))
    level, trend = float(loads[0]), 0.0
    # The covariance of both: of the level, between them, of the trend.
    own, between, other = _BEGINNING, 0.0, _BEGINNING
    states[0] = level, trend
    for at, load in enumerate(loads[1:].tolist(), 1):
        level += trend
        own, between, other = own + 2 * between + other + _LEVEL, between + other, other + _TREND
        surprise, variance = load - level, own + _SEEN
        level += own / variance * surprise
        trend += between / variance * surprise
        own, between, other = (
            own - own * own / variance,
            between - own * between / variance,
            other - between * between / variance,
        )
        states[at] = level, trend
    return states
