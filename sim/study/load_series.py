"""The load of a trace over time: what arrives in each interval."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from ground.errors import UserError
from sim.fleet.forecasters.forecaster import Floats
from traces.table import Trace

# Name → (unit, what a request counts).
LOADS: dict[str, tuple[str, pl.Expr]] = {
    "requests": ("requests/s", pl.lit(1.0)),
    "prompt_tokens": ("prompt tokens/s", pl.col("prompt_tokens")),
    "output_tokens": ("output tokens/s", pl.col("output_tokens")),
    "tokens": ("tokens/s", pl.col("prompt_tokens") + pl.col("output_tokens")),
}


@dataclass(frozen=True)
class LoadSeries:
    """`load` is the mean over each interval of `interval` seconds, in `unit`; they follow one another without a gap."""

    load: Floats
    interval: float
    unit: str
    left_out: int  # requests without an arrival: a turn that an answer releases comes when the fleet lets it


def load_series(trace: Trace, interval: float, of: str = "requests") -> LoadSeries:
    """`of` is one of `LOADS`; a request counts where it arrives. The last interval is left out, as it is not whole.

    Raises:
        UserError: the trace spans less than two intervals.
    """
    unit, worth = LOADS[of]
    table = trace.requests.select("arrival", worth=worth.cast(pl.Float64))
    arriving = table.drop_nulls("arrival").sort("arrival")
    times = arriving["arrival"].to_numpy()
    if not times.size or times[-1] - times[0] < 2 * interval:
        span = float(times[-1] - times[0]) if times.size else 0.0
        raise UserError(
            f"{trace.source}: found arrivals over {span:g} s, expected at least two intervals of {interval:g} s"
        )
    place = ((times - times[0]) / interval).astype(np.int64)
    sums = np.bincount(place, arriving["worth"].to_numpy())[:-1]
    return LoadSeries(sums / interval, interval, unit, len(table) - len(arriving))
