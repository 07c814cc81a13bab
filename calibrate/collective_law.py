"""Seconds of collective operations, between measured sizes."""

from __future__ import annotations

from math import exp, log

import polars as pl

from calibrate.curve import Curve
from ground.errors import UserError


class Collectives:
    """Time by operation, ranks and bytes (of one rank's input): log-log linear between measured sizes.

    One latency and one bandwidth err by 20 to 46 % between them (8 × H100, nccl-tests), so nothing is fitted. Below
    the smallest size its time holds; beyond the largest, time grows with bytes.
    """

    def __init__(self, table: pl.DataFrame, source: str) -> None:
        self._curves: dict[tuple[str, int], Curve] = {}
        self.source = source
        for (operation, ranks), rows in table.sort("bytes").group_by("operation", "ranks", maintain_order=True):
            logs = rows.select(pl.col("bytes").cast(pl.Float64).log(), pl.col("seconds").log())
            self._curves[operation, ranks] = Curve(logs["bytes"].to_list(), logs["seconds"].to_list())

    def has(self, operation: str, ranks: int) -> bool:
        return (operation, ranks) in self._curves

    def seconds(self, operation: str, ranks: int, size: float) -> float:
        """Of one call; 0 for a single rank.

        Raises:
            UserError: the operation was not measured between so many ranks.
        """
        if ranks == 1:
            return 0.0
        curve = self._curves.get((operation, ranks))
        if curve is None:
            known = ", ".join(sorted({f"{name} × {count}" for name, count in self._curves})) or "none"
            raise UserError(f"{self.source}: no {operation} between {ranks} ranks; measured are {known}")
        at = log(max(size, 1.0))
        if at < curve.low:
            return exp(curve.ys[0])
        if at > curve.high:
            return exp(curve.ys[-1] + at - curve.high)
        return exp(curve(at))


def line(ranks: int, latency: float, bandwidth: float) -> pl.DataFrame:
    """A table of the collectives that an engine needs, from one latency and one bandwidth of a link.

    A ring moves 2 (n - 1) / n of an all-reduce's bytes and (n - 1) of an all-gather's input, in as many steps
    (NVIDIA/nccl-tests, doc/PERFORMANCE.md). A stated fall-back where nothing was measured.
    """
    steps = ranks - 1
    moved = {"all_reduce": 2 * steps / ranks, "all_gather": float(steps), "reduce_scatter": steps / ranks}
    hops = {"all_reduce": 2 * steps, "all_gather": steps, "reduce_scatter": steps}
    sizes = [2**k for k in range(8, 31)]
    rows = [
        {"operation": name, "ranks": ranks, "bytes": size, "seconds": hops[name] * latency + share * size / bandwidth}
        for name, share in moved.items()
        for size in sizes
    ]
    return pl.DataFrame(rows)
