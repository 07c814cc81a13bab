"""The load stays as it is: the `constant` predictor of planners."""

from __future__ import annotations

import numpy as np

from sim.fleet.forecasters.errors import PastErrors
from sim.fleet.forecasters.forecaster import Floats, Forecast, Forecaster
from sim.fleet.forecasters.history import need


class Naive(Forecaster):
    def fit(self, history: Floats) -> None:
        horizon = self.setting.horizon
        need(history, horizon + 2, "naive")
        self._errors = PastErrors(
            [history[ahead:] - history[:-ahead] for ahead in range(1, horizon + 1)], self.setting.levels
        )

    def predict(self, recent: Floats, horizon: int) -> Forecast:
        return self._errors.around(np.full(horizon, recent[-1]))
