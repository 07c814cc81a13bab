"""How sure a mean over few seeds is, and a share of few trials: intervals of Student and of Clopper and Pearson."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

Verdict = Literal["better", "worse", "no difference", "not known"]


@dataclass(frozen=True)
class Interval:
    """A mean, and the half width of the interval around it; null of a single value, which says nothing of others."""

    mean: float
    half: float | None

    @property
    def low(self) -> float:
        return -math.inf if self.half is None else self.mean - self.half

    @property
    def high(self) -> float:
        return math.inf if self.half is None else self.mean + self.half


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """The mean of independent values and Student's interval around it: in `confidence` of all such samples of a normal
    law it holds the law's mean (Student 1908).

    Raises:
        ValueError: no values.
    """
    count = len(values)
    if not count:
        raise ValueError("no values; expected at least one")
    mean = math.fsum(values) / count
    if count == 1:
        return Interval(mean, None)
    variance = math.fsum((value - mean) ** 2 for value in values) / (count - 1)
    return Interval(mean, student_quantile(count - 1, confidence) * math.sqrt(variance / count))


def difference(one: Sequence[float], other: Sequence[float], confidence: float = 0.95) -> Interval:
    """The mean of `one` − `other`, value by value. What both share, such as a seed's trace, falls out of it.

    Raises:
        ValueError: not as many of the one as of the other.
    """
    return mean_interval([a - b for a, b in zip(one, other, strict=True)], confidence)


def verdict(change: Interval, *, smaller_is_better: bool) -> Verdict:
    """What a difference says: nothing where zero lies within its interval."""
    if change.half is None:
        return "not known"
    if change.low <= 0.0 <= change.high:
        return "no difference"
    return "better" if (change.mean < 0) == smaller_is_better else "worse"


@lru_cache(maxsize=64)
def student_quantile(freedom: int, confidence: float) -> float:
    """The t with P(|T| ≤ t) = `confidence` for Student's law of `freedom` degrees.

    Raises:
        ValueError: less than one degree, or a confidence that does not lie between 0 and 1.
    """
    if freedom < 1 or not 0 < confidence < 1:
        raise ValueError(f"{freedom} degrees and confidence {confidence}; expected at least 1, and between 0 and 1")
    high = 1.0
    while _student_within(high, freedom) < confidence:
        high *= 2
    return _bisect(lambda t: _student_within(t, freedom) < confidence, 0.0, high)


def share_at_most(hits: int, trials: int, confidence: float = 0.95) -> float:
    """The largest share that `hits` of `trials` leave believable: with any larger one, so few hits come less often than
    1 − `confidence` (one-sided limit of Clopper and Pearson 1934). 1 without trials.
    """
    if hits >= trials:
        return 1.0
    return _bisect(lambda p: _binomial_at_most(hits, trials, p) > 1 - confidence, 0.0, 1.0)


def _student_within(t: float, freedom: int) -> float:
    """P(|T| ≤ t): the finite sums of Abramowitz and Stegun 26.7.3 and 26.7.4."""
    angle = math.atan(t / math.sqrt(freedom))
    cosine, sine = math.cos(angle), math.sin(angle)
    odd = freedom % 2
    if freedom == 1:
        return 2 * angle / math.pi
    term = cosine if odd else 1.0
    total = term
    for index in range(3 if odd else 2, freedom - 1, 2):
        term *= cosine * cosine * (index - 1) / index
        total += term
    return 2 / math.pi * (angle + sine * total) if odd else sine * total


def _binomial_at_most(hits: int, trials: int, p: float) -> float:
    return math.fsum(math.comb(trials, k) * p**k * (1 - p) ** (trials - k) for k in range(hits + 1))


def _bisect(below: Callable[[float], bool], low: float, high: float) -> float:
    """Where `below` turns from true to false, to the last bit."""
    while True:
        middle = (low + high) / 2
        if middle in (low, high):
            return middle
        if below(middle):
            low = middle
        else:
            high = middle
