"""Token counts as recorded histograms: probability mass functions, one a window of time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Pmf:
    """Values and the running sum of their probabilities."""

    values: Floats
    cumulative: Floats

    @classmethod
    def of(cls, values: Floats, probabilities: Floats) -> Pmf:
        """The values in ascending order; raises a ValueError where there is nothing to draw from."""
        if not len(values) or not np.isfinite(values).all() or not np.isfinite(probabilities).all():
            raise ValueError("expected finite values and probabilities")
        if (probabilities < 0).any() or not probabilities.sum() > 0:
            raise ValueError("expected probabilities of at least 0 and more than 0 in all")
        order = np.argsort(values, kind="stable")
        return cls(values[order], np.cumsum(probabilities[order]))

    @property
    def mean(self) -> float:
        return float(np.diff(self.cumulative, prepend=0.0) @ self.values / self.cumulative[-1])

    def quantiles(self, uniforms: Floats) -> Ints:
        """The value at each of these numbers in [0, 1), rounded to whole tokens."""
        found = np.searchsorted(self.cumulative, uniforms * self.cumulative[-1], side="right")
        return np.rint(self.values[np.minimum(found, len(self.values) - 1)]).astype(np.int64)


def parse_pmf(text: str) -> Pmf | None:
    """The text `{value: probability, …}` as ServeGen writes it; None for `{}`. Only numbers are read, nothing is run.

    Raises:
        ValueError: the text is anything else.
    """
    inner = text.strip()
    if not (inner.startswith("{") and inner.endswith("}")):
        raise ValueError("expected {value: probability, …}")
    inner = inner[1:-1].strip().removesuffix(",")
    if not inner:
        return None
    pairs = [pair.split(":") for pair in inner.split(",")]
    if any(len(pair) != 2 for pair in pairs):
        raise ValueError("expected {value: probability, …}")
    numbers = np.array([[float(value), float(probability)] for value, probability in pairs])
    return Pmf.of(numbers[:, 0], numbers[:, 1])


@dataclass(frozen=True)
class WindowedPmf:
    """One histogram a window; windows without data are left out."""

    starts: Floats  # seconds, ascending
    pmfs: tuple[Pmf, ...]

    def at(self, time: float) -> Pmf:
        """That of the latest window that has begun at `time`, or the first one before all have."""
        return self.pmfs[max(int(np.searchsorted(self.starts, time, side="right")) - 1, 0)]
