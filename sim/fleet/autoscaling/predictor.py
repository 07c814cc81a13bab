"""The next value of a series that comes one interval at a time, from a forecaster that learns as it grows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ground.errors import UserError
from sim.fleet.forecasters import FORECASTERS
from sim.fleet.forecasters.forecaster import LEVELS, Forecast, Forecaster, ForecasterSetting

CONSTANT = "constant"  # Dynamo's word for `naive`
PREDICTORS = (CONSTANT, *FORECASTERS)


class Predictor:
    """Until its forecaster can be fitted, and where it cannot be, the last value stands for the next ones."""

    def __init__(
        self,
        name: str,
        seed: int,
        history: Sequence[float] | np.ndarray = (),
        *,
        horizon: int = 1,
        refit: int = 1,
        season: int | None = None,
        levels: tuple[float, ...] = LEVELS,
        anew: bool = True,
    ) -> None:
        """`history`: values before the first; `refit`: values after which it is fitted anew, or else updated."""
        setting = ForecasterSetting(horizon=horizon, season=season, levels=levels, seed=seed)
        self._forecaster: Forecaster = FORECASTERS["naive" if name == CONSTANT else name](setting)
        self._horizon = horizon
        self._refit = refit
        self._anew = anew
        self._values = list(history)
        self._fitted = False
        self._since = 0
        if self._values:
            self._fit()

    def add(self, value: float) -> None:
        if not self._values and value == 0:
            return  # nothing has come yet: leading zeros tell nothing
        self._values.append(value)
        self._since += 1
        if not self._fitted or self._since >= self._refit:
            self._fit()

    def forecast(self) -> Forecast | None:
        """Of the next `horizon` values; None: it knows too few."""
        if not self._fitted or len(self._values) < self._forecaster.least:
            return None
        return self._forecaster.predict(np.asarray(self._values, dtype=float), self._horizon)

    @property
    def last(self) -> float:
        return self._values[-1] if self._values else 0.0

    def next(self, value: float) -> float:
        """Add a value; returns the one that is expected after it."""
        self.add(value)
        forecast = self.forecast()
        return self.last if forecast is None else float(forecast.mean[0])

    def _fit(self) -> None:
        learn = self._forecaster.fit if self._anew or not self._fitted else self._forecaster.update
        try:
            learn(np.asarray(self._values, dtype=float))
        except UserError:
            return  # too short yet
        self._fitted, self._since = True, 0
