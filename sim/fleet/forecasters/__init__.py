"""Forecasters of load, by name."""

from collections.abc import Callable

from sim.fleet.forecasters.arima import Arima
from sim.fleet.forecasters.forecaster import Forecaster, ForecasterSetting
from sim.fleet.forecasters.holt_winters import HoltWinters
from sim.fleet.forecasters.kalman import Kalman
from sim.fleet.forecasters.lstm import Lstm
from sim.fleet.forecasters.naive import Naive
from sim.fleet.forecasters.seasonal_naive import SeasonalNaive

FORECASTERS: dict[str, Callable[[ForecasterSetting], Forecaster]] = {
    "naive": Naive,
    "seasonal_naive": SeasonalNaive,
    "holt_winters": HoltWinters,
    "arima": Arima,
    "kalman": Kalman,
    "lstm": Lstm,
}
