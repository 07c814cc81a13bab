"""A trace in numbers: rates, burstiness, token percentiles, prefix reuse."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from traces.reuse import lru_curve, prefix_reuse
from traces.table import Trace

Floats = NDArray[np.float64]

CAPACITIES = (1_000, 3_000, 10_000, 30_000, 50_000, 100_000)  # blocks


def describe(trace: Trace, capacities: Sequence[int] = CAPACITIES) -> dict[str, Any]:
    """Everything `simctl trace info` shows, ready for JSON; null where the trace does not say.

    `arrivals`: rates in requests/s, of the arrivals the trace fixes (turns that a parent releases have none), the
    coefficient of variation (CV) of the gaps, and the index of dispersion (IoD: variance over mean of counts a bin;
    1 = Poisson). `tokens`: of prompt and output, mean and percentiles. `turns` of a session and `think_time` of closed
    loop turns: the same. `prefix_reuse`: share of prompt blocks and tokens found again, with an infinite cache and
    with LRU caches of `capacities` blocks. Without a common clock there are no `arrivals`, and no LRU caches, since
    sessions then have no order; what one session finds of its own stands.
    """
    requests = trace.requests
    ordered = trace.clock == "shared"
    infinite = prefix_reuse(trace)
    has_sessions = "session" in requests.columns
    thinks = requests["think_time"].drop_nulls() if "think_time" in requests.columns else pl.Series([])
    return {
        "format": trace.format,
        "source": trace.source,
        "rows_read": trace.rows_read,
        "dropped": trace.dropped,
        "notes": trace.notes,
        "requests": len(requests),
        "sessions": requests["session"].n_unique() if has_sessions else None,
        "turns": _percentiles(requests.group_by("session").len()["len"]) if has_sessions else None,
        "think_time": _percentiles(thinks) if len(thinks) else None,
        "closed_loop_requests": requests["arrival"].null_count(),
        "columns": requests.columns,
        "arrivals": _arrivals(arrival_times(trace)) if ordered else None,
        "tokens": {
            "prompt": _percentiles(requests["prompt_tokens"]),
            "output": _percentiles(requests["output_tokens"]),
        },
        "prefix_reuse": None
        if infinite is None
        else {
            "block_tokens": requests["prefix_block_tokens"].drop_nulls().unique().sort().to_list(),
            "distinct_blocks": requests["prefix_ids"].explode(keep_nulls=False).n_unique(),
            "prompt_blocks": infinite.blocks,
            "blocks": infinite.block_rate,
            "tokens": infinite.token_rate,
            "lru_blocks": lru_curve(trace, capacities) if ordered else None,
        },
    }


def _arrivals(times: Floats) -> dict[str, float | None]:
    gaps = np.diff(times)
    span = float(times[-1] - times[0])
    return {
        "span_seconds": span,
        "rate_mean": len(times) / span if span else None,
        "rate_peak_1s": peak_rate(times, 1.0),
        "rate_peak_60s": peak_rate(times, 60.0),
        "gap_cv": float(gaps.std() / gaps.mean()) if span else None,
        "iod_1s": dispersion(times, 1.0),
        "iod_60s": dispersion(times, 60.0),
    }


def arrival_times(trace: Trace) -> Floats:
    """The arrivals the trace fixes, sorted, in seconds."""
    return trace.requests["arrival"].drop_nulls().to_numpy()


def counts(times: Floats, window: float) -> NDArray[np.int64]:
    """Arrivals in consecutive windows of `window` seconds from the first arrival; the last, partial one included."""
    return np.bincount(((times - times[0]) / window).astype(np.int64))


def peak_rate(times: Floats, window: float) -> float:
    """Requests per second in the fullest window."""
    return float(counts(times, window).max() / window)


def dispersion(times: Floats, window: float) -> float | None:
    """Variance over mean of the counts in full windows; null with fewer than two of them."""
    full = counts(times, window)[:-1]
    return float(full.var() / full.mean()) if len(full) > 1 else None


def _percentiles(values: pl.Series) -> dict[str, float]:
    p50, p90, p99 = np.percentile(values.to_numpy(), (50, 90, 99))
    return {
        "mean": float(values.to_numpy().mean()),
        "p50": float(p50),
        "p90": float(p90),
        "p99": float(p99),
        "max": float(values.to_numpy().max()),
    }
