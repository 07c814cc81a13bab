"""A small LSTM, trained on the history itself, that predicts a normal distribution of log(1 + load)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ground.errors import UserError
from sim.fleet.forecasters.errors import normal_errors
from sim.fleet.forecasters.forecaster import Floats, Forecast, Forecaster, ForecasterSetting
from sim.fleet.forecasters.history import find_season, need

if TYPE_CHECKING:
    from sim.fleet.forecasters.lstm_network import Network, Windows

WINDOW = 60  # intervals that the network reads


@dataclass(frozen=True)
class Scale:
    """log(1 + load), then to mean 0 and deviation 1 over the history."""

    mean: float
    deviation: float

    def normal(self, load: Floats) -> Floats:
        result: Floats = (np.log1p(load) - self.mean) / self.deviation
        return result


class Lstm(Forecaster):
    """Reads the last 60 intervals and, where there is a season, the loads a season before those asked for."""

    def __init__(self, setting: ForecasterSetting) -> None:
        super().__init__(setting)
        try:
            import torch  # noqa: F401
        except ImportError as error:
            raise UserError("lstm: needs the package torch; install simctl[torch]") from error
        self.season: int | None = None
        self.scale: Scale
        self.network: Network

    def fit(self, history: Floats) -> None:
        from sim.fleet.forecasters.lstm_network import train

        self.season = self.setting.season or find_season(history)
        self.least = max(WINDOW, self.season or 0)
        need(history, self.least + 12 * self.setting.horizon, "lstm")
        logs = np.log1p(history)
        self.scale = Scale(float(logs.mean()), float(logs.std()) or 1.0)
        self.network = train(self._windows(self.scale.normal(history)), self.setting.seed)

    def predict(self, recent: Floats, horizon: int) -> Forecast:
        import torch

        from sim.fleet.forecasters.lstm_network import one_thread

        recent = self.scale.normal(recent[-self.least :])
        ahead = self._season_ago(np.array([len(recent)]))
        with torch.no_grad(), one_thread():
            found = self.network(_tensor(recent[None, -WINDOW:]), _tensor(recent[ahead]))
        mean, deviation = (part[0, :horizon].double().numpy() for part in found)
        mean = self.scale.mean + self.scale.deviation * mean
        deviation = self.scale.deviation * np.exp(deviation)
        return normal_errors(mean, deviation, self.setting.levels, log=True)

    def _windows(self, normal: Floats) -> Windows:
        from sim.fleet.forecasters.lstm_network import Windows

        horizon = self.setting.horizon
        places = np.arange(self.least, len(normal) - horizon + 1)
        return Windows(
            past=_tensor(normal[places[:, None] - WINDOW + np.arange(WINDOW)]),
            season_ago=_tensor(normal[self._season_ago(places)]),
            target=_tensor(normal[places[:, None] + np.arange(horizon)]),
        )

    def _season_ago(self, places: np.ndarray) -> np.ndarray:
        """Where the load stands a season, or whole seasons, before each interval of the horizon after `places`."""
        if self.season is None:
            return np.empty((len(places), 0), dtype=np.int64)
        return places[:, None] - self.season + np.arange(self.setting.horizon) % self.season


def _tensor(values: np.ndarray):  # type: ignore[no-untyped-def]  # torch is not imported here
    import torch

    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
