"""A time that is always the same, or drawn anew each time from a distribution."""

from __future__ import annotations

from math import log, log1p, sqrt
from typing import Annotated

import numpy as np
from pydantic import Field

from ground.spec import Spec

Seconds = Annotated[float, Field(ge=0, le=1e7)]


class Lognormal(Spec):
    """Log-normal with that mean and standard deviation: start-up times have a long tail and no negative values."""

    mean: float = Field(gt=0, le=1e7)
    deviation: float = Field(ge=0, le=1e7)

    def draw(self, random: np.random.Generator) -> float:
        variance = log1p((self.deviation / self.mean) ** 2)
        return float(random.lognormal(log(self.mean) - variance / 2, sqrt(variance)))


Duration = Seconds | Lognormal


def seconds_of(duration: Duration, random: np.random.Generator) -> float:
    return duration.draw(random) if isinstance(duration, Lognormal) else duration


def mean_of(duration: Duration) -> float:
    return duration.mean if isinstance(duration, Lognormal) else duration
