"""When a replica's metrics are sampled, and what has happened until each sample: counts, sums and histograms."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# Prometheus keeps milliseconds.
_MILLISECONDS = 1000


def sample_times(begin: float, end: float, interval: float) -> np.ndarray:
    """Milliseconds on the run's clock, rising: the multiples of `interval` (s) from `begin` to `end`, and `end` itself,
    rounded up, so that the last sample has everything."""
    step = round(interval * _MILLISECONDS)
    first, last = (int(np.ceil(seconds * _MILLISECONDS)) for seconds in (begin, end))
    grid = np.arange(-(-first // step) * step, last + 1, step, dtype=np.int64)
    return grid if grid.size and grid[-1] == last else np.append(grid, last)


def seconds(times: np.ndarray) -> np.ndarray:
    return times / _MILLISECONDS


def count_until(moments: np.ndarray, at: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """How many of `moments` lie at or before each of `at` (rising), or the sum of their integer `weights`."""
    order = np.argsort(moments, kind="stable")
    reached = np.searchsorted(moments[order], at, side="right")
    if weights is None:
        return reached
    return np.concatenate(([0], np.cumsum(weights[order])))[reached]


@dataclass(frozen=True)
class Histogram:
    """At each sample: observations at or below each bound and in all, shape (samples, bounds + 1), and their sum."""

    counts: np.ndarray
    sums: np.ndarray


@dataclass(frozen=True)
class Observations:
    """Values that were observed, each `times` over, until the sample of that index; arrays of one length."""

    sample: np.ndarray
    value: np.ndarray
    times: np.ndarray

    def histogram(self, samples: int, bounds: np.ndarray) -> Histogram:
        shape = samples, len(bounds) + 1
        counts = np.zeros(shape, dtype=np.int64)
        np.add.at(counts, (self.sample, np.searchsorted(bounds, self.value, side="left")), self.times)
        sums = np.bincount(self.sample, weights=self.value * self.times, minlength=samples)
        return Histogram(counts.cumsum(axis=0).cumsum(axis=1), sums.cumsum())

    def count(self, samples: int) -> np.ndarray:
        """Of all of them, until each sample."""
        counts = np.zeros(samples, dtype=np.int64)
        np.add.at(counts, self.sample, self.times)
        return counts.cumsum()


def observed(moments: np.ndarray, values: np.ndarray, at: np.ndarray) -> Observations:
    """Each value once, at its moment. What comes after the last sample is in none."""
    sample = np.searchsorted(at, moments, side="left")
    seen = sample < len(at)
    return Observations(sample[seen], values[seen], np.ones(int(seen.sum()), dtype=np.int64))


def spread(
    begin: np.ndarray, end: np.ndarray, count: np.ndarray, values: np.ndarray, times: np.ndarray, at: np.ndarray
) -> Observations:
    """Runs of `count` observations of one value, evenly spaced, the last of them at `end`; each counts `times`.

    What a run has until a sample within it is rounded down: an observation is counted when it is complete.
    """
    first, last = np.searchsorted(at, begin, side="left"), np.searchsorted(at, end, side="left")
    lengths = last - first + 1
    run = np.repeat(np.arange(len(begin)), lengths)
    place = np.arange(len(run)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    sample = first[run] + place
    ended = sample >= last[run]
    length = np.where(end > begin, end - begin, 1.0)[run]
    passed = (at[np.minimum(sample, len(at) - 1)] - begin[run]) / length
    done = np.where(ended, count[run], np.floor(np.clip(passed, 0.0, 1.0) * count[run])).astype(np.int64)
    before = np.where(place > 0, np.concatenate(([0], done[:-1])), 0)
    new = done - before
    keep = (new > 0) & (sample < len(at))
    return Observations(sample[keep], values[run[keep]], (new * times[run])[keep])


def together(*parts: Observations) -> Observations:
    return Observations(
        np.concatenate([part.sample for part in parts]),
        np.concatenate([part.value for part in parts]),
        np.concatenate([part.times for part in parts]),
    )
