"""Arrival processes. Each draws the sorted arrival times of at most `count` requests before `duration` seconds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PositiveFloat, model_validator

from ground.spec import Spec

Times = NDArray[np.float64]

_CHUNK = 4096


class Constant(Spec):
    """One request every 1/rate seconds, the first at 0."""

    process: Literal["constant"]
    rate: PositiveFloat  # requests per second

    def draw(self, rng: np.random.Generator, count: int | None, duration: float | None) -> Times:
        if count is None:
            assert duration is not None
            count = int(np.ceil(duration * self.rate))
        return _before(np.arange(count) / self.rate, duration)


class Poisson(Spec):
    """Independent exponential gaps with mean 1/rate."""

    process: Literal["poisson"]
    rate: PositiveFloat  # requests per second

    def draw(self, rng: np.random.Generator, count: int | None, duration: float | None) -> Times:
        return _renewal(lambda size: rng.exponential(1 / self.rate, size), count, duration)


class Gamma(Spec):
    """Independent Gamma gaps with mean 1/rate; give either `cv`, or vLLM's `burstiness` = 1/cv² (the shape)."""

    process: Literal["gamma"]
    rate: PositiveFloat  # requests per second
    cv: PositiveFloat | None = None
    burstiness: PositiveFloat | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> Gamma:
        if (self.cv is None) == (self.burstiness is None):
            raise ValueError("give exactly one of cv and burstiness")
        return self

    @property
    def shape(self) -> float:
        return self.burstiness if self.burstiness is not None else float(self.cv or 0.0) ** -2

    def draw(self, rng: np.random.Generator, count: int | None, duration: float | None) -> Times:
        scale = 1 / (self.rate * self.shape)
        return _renewal(lambda size: rng.gamma(self.shape, scale, size), count, duration)


class OnOff(Spec):
    """A Poisson process whose rate a two-state Markov chain switches (MMPP-2).

    Dwell times are exponential; the chain starts in its stationary distribution. The mean rate is
    (rate_on·mean_on + rate_off·mean_off) / (mean_on + mean_off).
    """

    process: Literal["on-off"]
    rate_on: PositiveFloat  # requests per second
    rate_off: float = Field(0.0, ge=0)
    mean_on: PositiveFloat  # seconds
    mean_off: PositiveFloat

    def draw(self, rng: np.random.Generator, count: int | None, duration: float | None) -> Times:
        states, gaps = rng.spawn(2)
        on = bool(states.random() < self.mean_on / (self.mean_on + self.mean_off))
        means = (self.mean_on, self.mean_off) if on else (self.mean_off, self.mean_on)
        rates = (self.rate_on, self.rate_off) if on else (self.rate_off, self.rate_on)
        # Time change: unit-rate arrivals on the axis of the integrated rate are the arrivals in time. The integral
        # is linear within a dwell, so both directions are interpolations between the switching times.
        units = None if count is None else _renewal(lambda size: gaps.exponential(1.0, size), count, None)
        times, integral = np.zeros(1), np.zeros(1)
        while not (duration is not None and times[-1] >= duration) and not (
            units is not None and integral[-1] > units[-1]
        ):
            dwell = states.exponential(np.tile(means, _CHUNK // 2))
            times = np.append(times, times[-1] + np.cumsum(dwell))
            integral = np.append(integral, integral[-1] + np.cumsum(dwell * np.tile(rates, _CHUNK // 2)))
        if units is None:
            assert duration is not None
            units = _renewal(
                lambda size: gaps.exponential(1.0, size), None, float(np.interp(duration, times, integral))
            )
        return _before(np.interp(units[units < integral[-1]], integral, times), duration)


class Diurnal(Spec):
    """A Poisson process whose rate swings as a cosine, by thinning (Lewis and Shedler, 1979).

    rate(t) = rate·(1 + a·cos(2π(t − peak_at)/period)) with a = (p − 1)/(p + 1) for p = peak_to_trough.
    """

    process: Literal["diurnal"]
    rate: PositiveFloat  # mean over a period, requests per second
    peak_to_trough: float = Field(ge=1)
    period: PositiveFloat = 86400.0  # seconds
    peak_at: float = Field(0.0, ge=0)  # seconds from the start

    def rate_at(self, times: Times) -> Times:
        swing = (self.peak_to_trough - 1) / (self.peak_to_trough + 1)
        rates: Times = self.rate * (1 + swing * np.cos(2 * np.pi * (times - self.peak_at) / self.period))
        return rates

    def draw(self, rng: np.random.Generator, count: int | None, duration: float | None) -> Times:
        gaps, kept = rng.spawn(2)
        peak = float(self.rate_at(np.array(self.peak_at)))
        found: list[Times] = []
        now = 0.0
        while True:
            candidates = now + np.cumsum(gaps.exponential(1 / peak, _CHUNK))
            now = float(candidates[-1])
            found.append(candidates[kept.random(_CHUNK) * peak < self.rate_at(candidates)])
            if (duration is not None and now >= duration) or (count is not None and sum(map(len, found)) >= count):
                return _before(np.concatenate(found)[:count], duration)


Arrivals = Annotated[Constant | Poisson | Gamma | OnOff | Diurnal, Field(discriminator="process")]


def _renewal(gaps: Callable[[int], Times], count: int | None, duration: float | None) -> Times:
    """Running sum of independent gaps, drawn in chunks so that a longer trace begins with the shorter one."""
    found: list[Times] = []
    now, drawn = 0.0, 0
    while (count is None or drawn < count) and (duration is None or now < duration):
        found.append(now + np.cumsum(gaps(_CHUNK)))
        now, drawn = float(found[-1][-1]), drawn + _CHUNK
    return _before(np.concatenate(found)[:count], duration)


def _before(times: Times, duration: float | None) -> Times:
    return times if duration is None else times[times < duration]
