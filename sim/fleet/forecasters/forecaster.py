"""What a forecaster is told, and what it answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

LEVELS = (0.1, 0.5, 0.9)


@dataclass(frozen=True)
class ForecasterSetting:
    """`horizon` is the most intervals ever asked for; `season` a period in intervals, None: found in the history.

    `levels` are the quantiles to predict, rising, each between 0 and 1. `seed` is of everything drawn.
    """

    horizon: int
    season: int | None = None
    levels: tuple[float, ...] = LEVELS
    seed: int = 0


@dataclass(frozen=True)
class Forecast:
    """The load of the next intervals, the first of them the one that begins now; never negative.

    `mean` is (horizon,), `quantiles` (levels, horizon), non-decreasing from level to level.
    """

    mean: Floats
    levels: tuple[float, ...]
    quantiles: Floats

    def at(self, level: float) -> Floats:
        """The quantile of that level, (horizon,).

        Raises:
            ValueError: it was not among the levels of the setting.
        """
        return self.quantiles[self.levels.index(level)]


class Forecaster(ABC):
    """Learns from a history of load an interval, then predicts. It has no clock and reads no file.

    Load is any non-negative series at a fixed interval, such as requests/s; oldest first.
    """

    least = 1  # how many intervals `predict` needs at least; known once it has learnt

    def __init__(self, setting: ForecasterSetting) -> None:
        self.setting = setting

    @abstractmethod
    def fit(self, history: Floats) -> None:
        """Learn from `history`; what was learnt before is forgotten.

        Raises:
            UserError: it is too short; says how long it should be.
        """

    def update(self, history: Floats) -> None:
        """Learn from what `history` has become since it was fitted; what changes seldom may be kept.

        Raises:
            UserError: as `fit`.
        """
        self.fit(history)

    @abstractmethod
    def predict(self, recent: Floats, horizon: int) -> Forecast:
        """The next `horizon` intervals, of which the setting allows as many, after `recent`.

        `recent` is the load until now, the more of it the better; the history may be its beginning. Only as much of its
        end is used as is needed, and nothing is learnt.
        """
