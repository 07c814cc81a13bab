"""Measured laws between grid points: a piecewise linear curve, and a surface made of such curves.

Beyond its grid a law goes on with the slope of its upper half, never falling: more work does not take less time, and a
last cell may be so narrow that its slope is noise.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import pairwise
from math import inf

import numpy as np


class Curve:
    """Piecewise linear through (xs, ys), exact at every grid point; xs rising.

    `__call__` and `many` do the same floating-point operations in the same order, so they agree bit for bit.
    """

    __slots__ = ("_arrays", "high", "low", "slopes", "xs", "ys")

    def __init__(self, xs: Sequence[float], ys: Sequence[float]) -> None:
        if len(xs) == 0 or len(xs) != len(ys) or any(b <= a for a, b in pairwise(xs)):
            raise ValueError("a curve needs one y an x, and rising xs")
        self.xs = [float(x) for x in xs]
        self.ys = [float(y) for y in ys]
        self.low, self.high = self.xs[0], self.xs[-1]
        points = list(zip(self.xs, self.ys, strict=True))
        slopes = [(y1 - y0) / (x1 - x0) for (x0, y0), (x1, y1) in pairwise(points)]
        self.slopes = [*slopes, self._slope_beyond()]
        self._arrays = (np.array(self.xs), np.array(self.ys), np.array(self.slopes))

    def _slope_beyond(self) -> float:
        if len(self.xs) == 1:
            return 0.0
        half = min(max(bisect_right(self.xs, (self.low + self.high) / 2) - 1, 0), len(self.xs) - 2)
        return max(0.0, (self.ys[-1] - self.ys[half]) / (self.high - self.xs[half]))

    def __call__(self, x: float) -> float:
        cell = bisect_right(self.xs, x) - 1
        if cell < 0:
            cell = 0
        return self.ys[cell] + self.slopes[cell] * (x - self.xs[cell])

    def many(self, x: np.ndarray) -> np.ndarray:
        """The same for an array of rising x; a new array of its shape."""
        first, last = bisect_right(self.xs, x[0]) - 1, bisect_right(self.xs, x[-1]) - 1
        if first < 0:
            first = 0
        if last <= first:  # a leap rarely leaves its cell: no search an element, and one new array
            y = x - self.xs[first]
            y *= self.slopes[first]
            y += self.ys[first]
            return y
        xs, ys, slopes = self._arrays
        cell = np.maximum(np.searchsorted(xs, x, side="right") - 1, 0)
        return ys[cell] + slopes[cell] * (x - xs[cell])

    def covers(self, x: float) -> bool:
        return self.low <= x <= self.high

    def plus(self, constant: float) -> Curve:
        return self._with(self.xs, [y + constant for y in self.ys], self.slopes)

    def times(self, factor: float) -> Curve:
        return self._with(self.xs, [y * factor for y in self.ys], [slope * factor for slope in self.slopes])

    def at_least(self, least: float) -> Curve:
        """The larger of the curve and a constant, for x ≥ 0; the same grid, with a point more where they cross."""
        starts, values, slopes = self.xs, self.ys, self.slopes
        if self.low > 0.0:
            starts = [0.0, *starts]
            values, slopes = [values[0] - slopes[0] * self.low, *values], [slopes[0], *slopes]
        cells: list[tuple[float, float, float]] = []  # where it begins, the value there, the slope
        for x, y, slope, behind in zip(starts, values, slopes, [*starts[1:], inf], strict=True):
            above = y > least or (y == least and slope > 0.0)
            cells.append((x, max(y, least), slope if above else 0.0))
            crossing = x + (least - y) / slope if slope else inf
            if x < crossing < behind:
                cells.append((crossing, least, 0.0 if above else slope))
        return self._with(*([cell[i] for cell in cells] for i in range(3)))

    def _with(self, xs: list[float], ys: list[float], slopes: list[float]) -> Curve:
        """Another curve over the same grid."""
        curve = Curve(xs, ys)
        curve.low, curve.high, curve.slopes = self.low, self.high, slopes
        curve._arrays = (np.array(xs), np.array(ys), np.array(slopes))
        return curve

    def leave_one_out(self) -> list[float]:
        """Relative error of each inner grid point when it is interpolated from its two neighbours."""
        errors = []
        for i in range(1, len(self.xs) - 1):
            share = (self.xs[i] - self.xs[i - 1]) / (self.xs[i + 1] - self.xs[i - 1])
            guess = self.ys[i - 1] + share * (self.ys[i + 1] - self.ys[i - 1])
            errors.append(abs(guess - self.ys[i]) / self.ys[i] if self.ys[i] else 0.0)
        return errors


def add(curves: Sequence[tuple[float, Curve]]) -> Curve:
    """The weighted sum of curves, exact: its grid is the union of theirs."""
    xs = sorted({x for _, curve in curves for x in curve.xs})
    return Curve(xs, [sum(weight * curve(x) for weight, curve in curves) for x in xs])


class Surface:
    """A law of two variables: one curve over `x` for each of some rows. The rows' grids may differ.

    Between two rows it is linear in `work(row, x)`, or in the row's number where no work is given.
    """

    def __init__(self, rows: dict[float, Curve], work: Callable[[float, float], float] | None = None) -> None:
        self.keys = sorted(rows)
        self.curves = [rows[key] for key in self.keys]
        self.work = work or (lambda row, _: row)

    def __call__(self, row: float, x: float) -> float:
        return self.look_up(row, x)[0]

    def look_up(self, row: float, x: float) -> tuple[float, bool]:
        """The value, and whether the point lies inside the grid."""
        low, high = self.cell(row)
        keys, curve = self.keys, self.curves[low]
        y0 = curve(x)
        inside = keys[0] <= row <= keys[-1] and curve.low <= x <= curve.high
        if low == high or row == keys[low]:
            return y0, inside
        curve = self.curves[high]
        y1 = curve(x)
        w0, w1 = self.work(keys[low], x), self.work(keys[high], x)
        share = (self.work(row, x) - w0) / (w1 - w0)
        rise = y1 - y0
        if share > 1.0 and rise < 0.0:
            rise = 0.0
        return y1 + (share - 1.0) * rise, inside and curve.low <= x <= curve.high

    def cell(self, row: float) -> tuple[int, int]:
        """Indices of the two rows between or beyond which `row` lies; equal where there is only one."""
        last = len(self.keys) - 1
        low = bisect_right(self.keys, row) - 1
        if low >= last:
            return (last - 1, last) if last else (0, 0)
        return (low, low + 1) if low > 0 else (0, 1)

    def at(self, row: float) -> Curve:
        """The curve over x at one row, on the union of the two neighbouring rows' grids."""
        low, high = self.cell(row)
        xs = sorted({*self.curves[low].xs, *self.curves[high].xs})
        return Curve(xs, [self(row, x) for x in xs])

    def covers(self, row: float, x: float) -> bool:
        return self.look_up(row, x)[1]
