"""What a forecaster is unsure of: how wrong it was so many intervals ahead, or a normal error that it estimates."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np

from sim.fleet.forecasters.forecaster import Floats, Forecast


class PastErrors:
    """The quantiles of the errors made in the history, for each number of intervals ahead.

    They are added to a prediction. Nothing is supposed of the errors' distribution, but that it stays.
    """

    def __init__(self, errors: list[Floats], levels: tuple[float, ...]) -> None:
        """`errors[h]`: load less prediction, h + 1 intervals ahead; any number of them, at least one."""
        self._levels = levels
        self._quantiles = np.stack([np.quantile(each, levels) for each in errors], axis=1)

    def around(self, prediction: Floats) -> Forecast:
        """`prediction` is (horizon,); its quantiles are those of the errors around it, and no load is below 0."""
        quantiles = prediction + self._quantiles[:, : len(prediction)]
        return Forecast(np.maximum(prediction, 0.0), self._levels, np.maximum(quantiles, 0.0))


def normal_errors(middle: Floats, deviation: Floats, levels: tuple[float, ...], *, log: bool) -> Forecast:
    """A forecast whose load is normal around `middle`, (horizon,), with `deviation`, (horizon,); no load is below 0.

    With `log` it is log(1 + load) that is normal, and the mean that of a log-normal distribution.
    """
    scores = np.array([NormalDist().inv_cdf(level) for level in levels])
    mean, quantiles = middle, middle + scores[:, None] * deviation
    if log:
        mean, quantiles = np.expm1(middle + deviation**2 / 2), np.expm1(quantiles)
    return Forecast(np.maximum(mean, 0.0), levels, np.maximum(quantiles, 0.0))
