"""Where the answer to a question turns from yes to no as a number grows, found in few questions."""

from __future__ import annotations

from collections.abc import Callable, Mapping

# An answer that is still the same so many doublings from the first question turns nowhere worth naming.
DOUBLINGS = 12


class Bisection:
    """Asks at `at` and is told yes or no, until it is done and `at` is null: first it doubles or halves its way from
    `start`, then it splits what lies between.

    `low` is the largest number with a yes, `high` the smallest with a no; null where there is none within `DOUBLINGS`
    doublings of the start, or not above `least`. `between` gives a number between two, null where they are near enough.
    """

    def __init__(
        self, start: float, between: Callable[[float, float], float | None], *, least: float | None = None
    ) -> None:
        self._between = between
        self._least = start / 2**DOUBLINGS if least is None else least
        self._most = start * 2**DOUBLINGS
        self.low: float | None = None
        self.high: float | None = None
        self.at: float | None = start

    def tell(self, yes: bool) -> None:
        """The answer at `at`; moves on to where to ask next."""
        if yes:
            self.low = self.at
        else:
            self.high = self.at
        if self.low is not None and self.high is not None:
            self.at = self._between(self.low, self.high)
        elif self.low is not None:
            self.at = 2 * self.low if self.low < self._most else None
        elif self.high is not None:
            self.at = max(self._least, self.high / 2) if self.high > self._least else None


def geometric_mean(tolerance: float) -> Callable[[float, float], float | None]:
    """Near enough are two of which the larger is at most 1 + `tolerance` times the smaller."""
    return lambda low, high: None if high <= low * (1 + tolerance) else (low * high) ** 0.5


def whole_middle(low: float, high: float) -> float | None:
    """Near enough are two whole numbers with none between."""
    return None if high - low <= 1 else float((low + high) // 2)


def violations(answers: Mapping[float, bool]) -> list[tuple[float, float]]:
    """Pairs of numbers of which the lower was answered no although the upper was answered yes; for each lower the
    nearest upper. None where the answers are what bisection supposes."""
    found = []
    for number in sorted(answers):
        above = [other for other in answers if other > number and answers[other]]
        if above and not answers[number]:
            found.append((number, min(above)))
    return found
