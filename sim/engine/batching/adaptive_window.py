"""A window that follows the arrivals: timeout = max(minimum, factor · moving average of the time between two of them).

Nobody waits longer than it takes, by that average, until another comes; when they come in a burst it is the minimum.
The average is exponential: a new gap counts `smoothing`, all before it the rest.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from sim.engine.batching.fixed_window import WindowSettings
from sim.engine.request import Request


class AdaptiveWindowSettings(WindowSettings):
    policy: Literal["adaptive_window"]
    minimum: float = Field(ge=0, description="seconds that the oldest waits for others at least")
    longest: float = Field(gt=0, description="seconds that the oldest waits at most, however seldom others come")
    factor: float = Field(default=0.8, gt=0, description="of the average time between two arrivals")
    smoothing: float = Field(default=0.2, gt=0, le=1, description="weight of the last gap in that average")

    @model_validator(mode="after")
    def _longest_is_no_less(self) -> AdaptiveWindowSettings:
        if self.longest < self.minimum:
            raise ValueError(f"longest is {self.longest:g}; expected at least minimum ({self.minimum:g})")
        return self


class AdaptiveWindow:
    """Until two have come there is no average, and the minimum holds."""

    def __init__(self, settings: AdaptiveWindowSettings) -> None:
        self._settings = settings
        self._last: float | None = None  # arrival
        self._gap: float | None = None  # average seconds between two arrivals

    def arrived(self, request: Request) -> None:
        if self._last is None:
            self._last = request.arrival
            return
        gap = max(0.0, request.arrival - self._last)  # one that was sent anew may have arrived long ago
        smoothing = self._settings.smoothing
        self._gap = gap if self._gap is None else smoothing * gap + (1.0 - smoothing) * self._gap
        self._last = max(self._last, request.arrival)

    def opens(self, oldest: float) -> float:
        return oldest + self.timeout

    @property
    def timeout(self) -> float:
        """Seconds."""
        settings = self._settings
        wanted = 0.0 if self._gap is None else settings.factor * self._gap
        return min(max(settings.minimum, wanted), settings.longest)
