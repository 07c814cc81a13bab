"""Times of matrix products of any shape, from a table of measured ones: what was not measured is borrowed."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterable
from math import exp, log
from typing import NamedTuple

import polars as pl

from calibrate.roofline import Work
from ground.errors import UserError

_BYTES = 2  # of a bfloat16, in which the table is measured


class Product(NamedTuple):
    """[m, k] × [k, n] for rising m: seconds, and the measured (n, k) they were borrowed from; none if measured."""

    ms: list[int]
    seconds: list[float]
    borrowed_from: list[tuple[int, int]]


class GemmTable:
    """A profile's table `gemm`, and three figures of the device that it shows.

    `peak` is the best FLOP/s of all rows. `bandwidth` is the best bytes/s of the smallest m, which reads weights and
    little else, among the products at least half as large as the largest: a smaller one may lie in the cache from one
    timing to the next. `floor` is the smallest time of all: what any kernel takes, however small.

    An efficiency is the roofline's time over the measured one. It varies slowly with a product's shape, so a shape
    that was not measured takes it, at equal m, from its measured neighbours: along n at the same k, along k at the
    same n, or from the corners around it; log-linear in the sizes, and beyond the border the border's. No product
    takes less than the floor.
    """

    def __init__(self, table: pl.DataFrame) -> None:
        self._shapes: dict[tuple[int, int], dict[int, float]] = {}
        for m, n, k, seconds in table.select("m", "n", "k", "seconds").sort("n", "k", "m").iter_rows():
            self._shapes.setdefault((n, k), {})[m] = seconds
        rows = [(_work(m, n, k), m, seconds) for m, n, k, seconds in table.select("m", "n", "k", "seconds").iter_rows()]
        smallest = min(m for _, m, _ in rows)
        reads = [(work.bytes, seconds) for work, m, seconds in rows if m == smallest]
        large = max(size for size, _ in reads) / 2
        self.peak = max(work.flops / seconds for work, _, seconds in rows)
        self.bandwidth = max(size / seconds for size, seconds in reads if size >= large)
        self.floor = min(seconds for *_, seconds in rows)

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """The measured (n, k)."""
        return list(self._shapes)

    def product(self, n: int, k: int) -> Product:
        """Seconds of [m, k] × [k, n] at every m that its source shapes were measured at.

        Raises:
            UserError: the shapes to borrow from have no m in common.
        """
        if (n, k) in self._shapes:
            measured = self._shapes[n, k]
            return Product(list(measured), list(measured.values()), [])
        return self._borrow(n, k, self._shapes)

    def borrow_errors(self) -> pl.DataFrame:
        """What borrowing is worth: every shape borrowed with all shapes of its n, or of its k, hidden.

        Returns:
            Columns hidden ("n" or "k"), n, k, m, inside (False where the border's efficiency had to do), and error
            (predicted over measured, less 1).
        """
        ns, ks = {n for n, _ in self._shapes}, {k for _, k in self._shapes}
        rows = []
        for hidden, sizes in (("n", ns), ("k", ks)):
            for n, k in self._shapes:
                size = n if hidden == "n" else k
                others = [shape for shape in self._shapes if shape[0 if hidden == "n" else 1] != size]
                if not others:
                    continue
                guess = self._borrow(n, k, others)
                inside = min(sizes) < size < max(sizes)
                rows += [
                    (hidden, n, k, m, inside, seconds / self._shapes[n, k][m] - 1.0)
                    for m, seconds in zip(guess.ms, guess.seconds, strict=True)
                    if m in self._shapes[n, k]
                ]
        schema = {"hidden": pl.String, "n": pl.Int64, "k": pl.Int64, "m": pl.Int64, "inside": pl.Boolean}
        return pl.DataFrame(rows, schema={**schema, "error": pl.Float64}, orient="row")

    def _borrow(self, n: int, k: int, shapes: Collection[tuple[int, int]]) -> Product:
        sources = _neighbours(n, k, shapes)
        ms = sorted(set.intersection(*(set(self._shapes[shape]) for shape in sources)))
        if not ms:
            listed = ", ".join(f"{n}×{k}" for n, k in sources)
            raise UserError(f"gemm {n}×{k}: its neighbours {listed} were measured at no common m")
        seconds = []
        for m in ms:
            share = exp(sum(weight * log(self._efficiency(m, *shape)) for shape, weight in sources.items()))
            seconds.append(max(self.floor, _work(m, n, k).seconds(self.peak, self.bandwidth) / share))
        return Product(ms, seconds, list(sources))

    def _efficiency(self, m: int, n: int, k: int) -> float:
        return _work(m, n, k).seconds(self.peak, self.bandwidth) / self._shapes[n, k][m]


def _neighbours(n: int, k: int, shapes: Collection[tuple[int, int]]) -> dict[tuple[int, int], float]:
    """Which of the shapes lie around (n, k), and their weights, which sum to 1."""
    along_n = {(other, k): weight for other, weight in _weights(n, [i for i, j in shapes if j == k]).items()}
    along_k = {(n, other): weight for other, weight in _weights(k, [j for i, j in shapes if i == n]).items()}
    lines = [line for line in (along_n, along_k) if line]
    if lines:
        return {shape: weight / len(lines) for line in lines for shape, weight in line.items()}
    columns, rows = _weights(n, [i for i, _ in shapes]), _weights(k, [j for _, j in shapes])
    corners = {(i, j): v * w for i, v in columns.items() for j, w in rows.items() if (i, j) in shapes}
    if total := sum(corners.values()):
        return {shape: weight / total for shape, weight in corners.items()}
    nearest = min(shapes, key=lambda shape: abs(log(shape[0] / n)) + abs(log(shape[1] / k)))
    return {nearest: 1.0}


def _weights(wanted: int, measured: Iterable[int]) -> dict[int, float]:
    """The measured sizes next to the wanted one, log-linear weights; one alone beyond the border, none of none."""
    sizes = sorted(set(measured))
    if not sizes:
        return {}
    above = bisect_left(sizes, wanted)
    if above == len(sizes) or sizes[above] == wanted or above == 0:
        return {sizes[min(above, len(sizes) - 1)]: 1.0}
    low, high = sizes[above - 1], sizes[above]
    share = log(wanted / low) / log(high / low)
    return {low: 1.0 - share, high: share}


def _work(m: int, n: int, k: int) -> Work:
    return Work(2.0 * m * n * k, float(_BYTES * (n * k + m * (n + k))))
