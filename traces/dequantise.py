"""Undo coarse clocks: arrivals that share one time stamp are spread over the quantum it stands for."""

from __future__ import annotations

import numpy as np
import polars as pl

from ground.errors import UserError
from traces.session_arrivals import need_one_clock
from traces.streams import stream
from traces.table import Trace


def dequantise(trace: Trace, seed: int, quantum: float | None = None) -> Trace:
    """Spread arrivals uniformly over [t, t + quantum), no further than the next distinct arrival.

    Within a batch the order of the source is kept, so prefix reuse in arrival order does not change. `quantum` is in
    seconds; without it, it is the median gap between distinct arrivals, noted as `detected`. Mooncake conversation:
    3 s.

    Raises:
        UserError: no arrival is shared by several requests and no quantum is given, or the quantum is not positive.
    """
    need_one_clock(trace)
    arrival = trace.requests["arrival"]
    times = arrival.drop_nulls().to_numpy()
    batches, size = np.unique(times, return_counts=True)
    detected = quantum is None
    if quantum is None:
        if len(batches) < 2 or len(times) < 2 * len(batches):
            raise UserError(
                f"{trace.source}: dequantise: found {len(times)} arrivals at {len(batches)} distinct times, expected "
                "at least two arrivals a time; the clock is not coarse"
            )
        quantum = float(np.median(np.diff(batches)))
    if not quantum > 0:
        raise UserError(f"dequantise: quantum: found {quantum}, expected more than 0 seconds")

    rng = stream(seed, "dequantise")
    room = np.minimum(np.diff(batches, append=np.inf), quantum)
    batch = np.repeat(np.arange(len(batches)), size)
    offset = rng.random(len(times))
    offset = offset[np.lexsort((offset, batch))] * room[batch]  # sorted within each batch
    spread = batches[batch] + offset
    spread -= spread[0]
    placed = arrival.to_numpy().astype(float)
    placed[~np.isnan(placed)] = spread
    return Trace(
        trace.requests.with_columns(arrival=pl.Series(placed).fill_nan(None)),
        trace.format,
        trace.source,
        trace.rows_read,
        dict(trace.dropped),
        {**trace.notes, "dequantised": {"quantum_seconds": quantum, "detected": detected, "seed": seed}},
    )
