"""What a forecaster that predicts one number is unsure of: how wrong it was, so many intervals ahead."""

from __future__ import annotations

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
