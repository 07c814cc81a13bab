"""The load is what it was a season ago."""

from __future__ import annotations

import numpy as np

from ground.errors import UserError
from sim.fleet.forecasters.errors import PastErrors
from sim.fleet.forecasters.forecaster import Floats, Forecast, Forecaster
from sim.fleet.forecasters.history import find_season, need


class SeasonalNaive(Forecaster):
    """As the interval a season before the one asked for, or as many whole seasons before as the horizon has."""

    def fit(self, history: Floats) -> None:
        season = self.setting.season or find_season(history)
        if season is None:
            raise UserError(f"seasonal_naive: found no season in {len(history)} intervals, expected one, or its length")
        need(history, 2 * season, "seasonal_naive")
        self.least = season
        errors = history[season:] - history[:-season]
        self._errors = PastErrors([errors] * self.setting.horizon, self.setting.levels)

    def predict(self, recent: Floats, horizon: int) -> Forecast:
        return self._errors.around(np.resize(recent[-self.least :], horizon))
