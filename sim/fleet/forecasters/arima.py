"""Autoregression and moving average of a differenced series (Box and Jenkins, 1970), the order chosen by AIC."""

from __future__ import annotations

import warnings
from itertools import product
from typing import Any

import numpy as np

from sim.fleet.forecasters.errors import normal_errors
from sim.fleet.forecasters.forecaster import Floats, Forecast, Forecaster, ForecasterSetting
from sim.fleet.forecasters.history import need, without_leading_zeros
from sim.fleet.forecasters.statsmodels_package import statsmodels

_MOST = 1000  # intervals at the history's end to learn from: time grows with them, what is learnt hardly does
_RECENT = 200  # intervals to filter for a prediction
_LEAST = 30
_STATIONARY = 0.05  # the level of the KPSS test
_MOST_ORDER = 2
_UPDATE_STEPS = 3


class Arima(Forecaster):
    """p and q up to 2 by AIC; one difference where the KPSS test (Kwiatkowski et al., 1992) finds the series not
    stationary. Where no order beats noise around a constant or a random walk, the series is looked at as log(1 + load),
    as Dynamo's planner does. Quantiles are those of normal errors on the scale that was chosen.

    It has no season: what comes back daily is a slow drift to it.
    """

    def __init__(self, setting: ForecasterSetting) -> None:
        super().__init__(setting)
        self._models = statsmodels("tsa.arima.model", "arima")
        self._tests = statsmodels("tsa.stattools", "arima")

    def fit(self, history: Floats) -> None:
        history = without_leading_zeros(history)
        need(history, _LEAST, "arima")
        history = history[-_MOST:]
        self.least = 10
        self.log = False
        self.order, self._parameters = self._choose(history)
        if self.order[0] == self.order[2] == 0:
            self.log = True
            self.order, self._parameters = self._choose(np.log1p(history))

    def update(self, history: Floats) -> None:
        """Order and scale stay, the parameters follow by a few steps from where they are, as by pmdarima's `update`,
        which Dynamo's planner calls. The search for an order takes fifty times longer."""
        history = without_leading_zeros(history)[-_MOST:]
        model = self._model(np.log1p(history) if self.log else history, self.order)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that so few steps do not converge is meant
            try:
                found = model.fit(
                    start_params=self._parameters,
                    method_kwargs={"maxiter": _UPDATE_STEPS},
                    cov_type="none",
                    low_memory=True,
                )
            except (ValueError, np.linalg.LinAlgError):  # they stay as they are
                return
        if np.isfinite(found.llf):
            self._parameters = np.asarray(found.params)

    def predict(self, recent: Floats, horizon: int) -> Forecast:
        recent = recent[-_RECENT:]
        model = self._model(np.log1p(recent) if self.log else recent, self.order)
        forecast = model.filter(self._parameters).get_forecast(horizon)
        middle, deviation = np.asarray(forecast.predicted_mean), np.asarray(forecast.se_mean)
        return normal_errors(middle, deviation, self.setting.levels, log=self.log)

    def _choose(self, series: Floats) -> tuple[tuple[int, int, int], Floats]:
        """(order, parameters) of the least AIC."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # start values and convergence: an order that fits badly has a large AIC
            changes = bool(np.ptp(series) > 0)
            differences = int(changes and self._tests.kpss(series, nlags="auto")[1] < _STATIONARY)
            best: tuple[float, tuple[int, int, int], Floats] | None = None
            for p, q in product(range(_MOST_ORDER + 1 if changes else 1), repeat=2):
                order = (p, differences, q)
                try:
                    found = self._model(series, order).fit(method_kwargs={"maxiter": 30})
                except (ValueError, np.linalg.LinAlgError):  # no such order fits this series, as with a constant one
                    continue
                if np.isfinite(found.aic) and (best is None or found.aic < best[0]):
                    best = (float(found.aic), order, np.asarray(found.params))
        if best is None:
            return (0, 1, 0), np.array([0.0])
        return best[1], best[2]

    def _model(self, series: Floats, order: tuple[int, int, int]) -> Any:
        return self._models.ARIMA(series, order=order, trend="c" if order[1] == 0 else "n")
