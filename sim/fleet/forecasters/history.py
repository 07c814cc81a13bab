"""What forecasters ask of a history before they learn from it."""

from __future__ import annotations

import numpy as np

from ground.errors import UserError
from sim.fleet.forecasters.forecaster import Floats

_FOUND = 0.3  # the least autocorrelation that is called a season


def need(history: Floats, least: int, who: str) -> None:
    """Refuse a history too short to learn from.

    Raises:
        UserError: it has fewer intervals than `least`.
    """
    if len(history) < least:
        raise UserError(f"{who}: found a history of {len(history)} intervals, expected at least {least}")


def without_leading_zeros(history: Floats) -> Floats:
    """The history from its first load on: before a service is used there is nothing to learn."""
    used = np.flatnonzero(history)
    return history[used[0] :] if used.size else history


def find_season(history: Floats) -> int | None:
    """The period of `history` in intervals: the lag of its highest autocorrelation beyond the first dip.

    Close intervals are always alike; a season shows where likeness comes back after it has gone. So only lags are
    looked at beyond the first negative autocorrelation, and up to half the history, which then shows two seasons.
    A lag is taken if it correlates by more than 0.3. None: no season.
    """
    size = len(history)
    centred = history - history.mean()
    power = np.abs(np.fft.rfft(centred, 2 * size)) ** 2
    covariance = np.fft.irfft(power)[: size // 2 + 1]
    if covariance[0] <= 1e-12 * max(1.0, float(np.abs(history).max())) ** 2 * size:
        return None
    # Each lag has its own number of pairs; without this a long season would look weaker than its half.
    correlation = covariance / covariance[0] * size / (size - np.arange(len(covariance)))
    dips = np.flatnonzero(correlation < 0)
    if not dips.size:
        return None
    first = int(dips[0])
    best = first + int(np.argmax(correlation[first:]))
    if correlation[best] <= _FOUND:
        return None
    return _sharpened(correlation, _shortest(correlation, best, first))


def _shortest(correlation: Floats, lag: int, first: int) -> int:
    """Several seasons are a season too; the shortest lag of which `lag` is a multiple, where all are as alike."""
    for seasons in range(lag // max(first, 1), 1, -1):
        low, high = round(0.95 * lag / seasons), round(1.05 * lag / seasons)
        found = low + int(np.argmax(correlation[low : high + 1]))
        if found > first and correlation[found] >= correlation[lag] - 0.05:
            return found
    return lag


def _sharpened(correlation: Floats, lag: int) -> int:
    """The lag near `lag` whose multiples are alike too: the peak of a slow season is flat, and noise shifts it."""
    near = np.arange(round(0.95 * lag), round(1.05 * lag) + 1)
    multiples = max(1, (len(correlation) - 1) // int(near[-1]))
    alike = np.sum([correlation[near * multiple] for multiple in range(1, multiples + 1)], axis=0)
    return int(near[np.argmax(alike)]) if near[-1] < len(correlation) else lag
