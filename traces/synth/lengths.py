"""Distributions of token counts and of times."""

from __future__ import annotations

from typing import Annotated, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from ground.spec import Spec

Counts = NDArray[np.int64]

_LARGEST = 2**31 - 1  # no request has more tokens; keeps a wild log-normal draw inside the integers


class ConstantCount(Spec):
    distribution: Literal["constant"]
    value: PositiveInt

    def draw(self, rng: np.random.Generator, size: int) -> Counts:
        return np.full(size, self.value, dtype=np.int64)


class UniformCount(Spec):
    """Every whole number from low to high, both included, equally likely."""

    distribution: Literal["uniform"]
    low: PositiveInt
    high: int = Field(ge=1, le=_LARGEST)

    @model_validator(mode="after")
    def _ordered(self) -> UniformCount:
        return _check_order(self)

    def draw(self, rng: np.random.Generator, size: int) -> Counts:
        return rng.integers(self.low, self.high, size, endpoint=True)


class LogNormalCount(Spec):
    """exp(N(ln median, sigma)), rounded, then clipped to low..high; mean before clipping = median·exp(sigma²/2)."""

    distribution: Literal["lognormal"]
    median: PositiveFloat
    sigma: float = Field(ge=0)
    low: PositiveInt = 1
    high: int = Field(_LARGEST, ge=1, le=_LARGEST)

    @model_validator(mode="after")
    def _ordered(self) -> LogNormalCount:
        return _check_order(self)

    def draw(self, rng: np.random.Generator, size: int) -> Counts:
        draws = rng.lognormal(np.log(self.median), self.sigma, size)
        return np.clip(np.rint(draws), self.low, self.high).astype(np.int64)


class ZipfCount(Spec):
    """P(low + k) ∝ 1/(k + 1)^exponent for k = 0 … high − low: short is common, long is rare."""

    distribution: Literal["zipf"]
    exponent: float = Field(ge=0)
    low: PositiveInt = 1
    high: int = Field(ge=1, le=10_000_000)

    @model_validator(mode="after")
    def _ordered(self) -> ZipfCount:
        return _check_order(self)

    def draw(self, rng: np.random.Generator, size: int) -> Counts:
        return self.low + zipf_ranks(rng, self.high - self.low + 1, self.exponent, size)


class GeometricCount(Spec):
    """1, 2, 3, … with a given mean, as when each turn is the last with probability 1/mean."""

    distribution: Literal["geometric"]
    mean: float = Field(ge=1)

    def draw(self, rng: np.random.Generator, size: int) -> Counts:
        return rng.geometric(1 / self.mean, size).astype(np.int64)


Count = Annotated[
    ConstantCount | UniformCount | LogNormalCount | ZipfCount | GeometricCount, Field(discriminator="distribution")
]


class ConstantTime(Spec):
    distribution: Literal["constant"]
    value: float = Field(ge=0)  # seconds

    def draw(self, rng: np.random.Generator, size: int) -> NDArray[np.float64]:
        return np.full(size, self.value)


class ExponentialTime(Spec):
    distribution: Literal["exponential"]
    mean: PositiveFloat  # seconds

    def draw(self, rng: np.random.Generator, size: int) -> NDArray[np.float64]:
        return rng.exponential(self.mean, size)


class LogNormalTime(Spec):
    distribution: Literal["lognormal"]
    median: PositiveFloat  # seconds
    sigma: float = Field(ge=0)

    def draw(self, rng: np.random.Generator, size: int) -> NDArray[np.float64]:
        return rng.lognormal(np.log(self.median), self.sigma, size)


Time = Annotated[ConstantTime | ExponentialTime | LogNormalTime, Field(discriminator="distribution")]


def zipf_ranks(rng: np.random.Generator, ranks: int, exponent: float, size: int) -> Counts:
    """`size` draws of a rank 0 … ranks − 1 with P(k) ∝ 1/(k + 1)^exponent; exponent 0 is uniform."""
    cumulative = np.cumsum(np.arange(1, ranks + 1, dtype=np.float64) ** -exponent)
    found: Counts = np.searchsorted(cumulative, rng.random(size) * cumulative[-1], side="right").astype(np.int64)
    return np.minimum(found, ranks - 1)  # a draw of 1 − ε may round up to the whole sum


Bounded = TypeVar("Bounded", UniformCount, LogNormalCount, ZipfCount)


def _check_order(spec: Bounded) -> Bounded:
    if spec.high < spec.low:
        raise ValueError(f"high ({spec.high}) must be at least low ({spec.low})")
    return spec
