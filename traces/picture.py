"""A trace as one HTML page: numbers, then rate over time, gaps, lengths and the prefix cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ground.errors import UserError
from ground.page import Page, Tone
from traces.describe import Floats, arrival_times, counts
from traces.table import Trace


def draw(trace: Trace, description: dict[str, Any], path: Path) -> None:
    """Write the page of `trace` to `path`; `description` is what `describe` said of it.

    Raises:
        UserError: `path` cannot be written.
    """
    arrivals, tokens, reuse = (description[key] for key in ("arrivals", "tokens", "prefix_reuse"))
    page = Page(f"Trace {Path(trace.source).name}", f"Format {trace.format}, read from {trace.source}.")
    numbers: list[tuple[str, str, Tone]] = [
        ("requests", f"{description['requests']:,}", "plain"),
        ("rows dropped", f"{sum(trace.dropped.values()):,}", "plain"),
        ("prompt tokens, mean", f"{tokens['prompt']['mean']:,.0f}", "plain"),
        ("output tokens, mean", f"{tokens['output']['mean']:,.0f}", "plain"),
    ]
    if arrivals is not None:
        numbers[2:2] = [
            ("span", f"{arrivals['span_seconds']:,.0f} s", "plain"),
            ("mean rate", _number(arrivals["rate_mean"], "/s"), "plain"),
            ("peak rate over 60 s", _number(arrivals["rate_peak_60s"], "/s"), "plain"),
            ("CV of gaps", _number(arrivals["gap_cv"]), "plain"),
        ]
    if reuse is not None:
        numbers.append(("prompt tokens seen before", f"{reuse['tokens']:.1%}", "plain"))
    page.numbers(numbers)

    if arrivals is not None:
        times = arrival_times(trace)
        page.heading("Arrivals")
        page.figure(_rate(times), "Requests per second over time. Turns that wait for an earlier answer are not in it.")
        if len(times) > 1 and arrivals["span_seconds"]:
            page.figure(
                _gaps(times), "How often a gap between arrivals is longer than x; dashed: Poisson at the same rate."
            )
    page.heading("Lengths")
    page.figure(_lengths(trace), "Share of requests with at most x tokens.")
    page.table(
        ("tokens", "mean", "p50", "p90", "p99", "max"),
        [(name, *(f"{value:,.0f}" for value in tokens[name].values())) for name in ("prompt", "output")],
    )
    if reuse is not None and reuse["lru_blocks"] is not None:
        page.heading("Prefix reuse")
        page.figure(
            _reuse(reuse),
            "Share of prompt blocks that an LRU cache of x blocks would have held, in arrival order; dashed: a cache "
            f"without end. Blocks of {', '.join(map(str, reuse['block_tokens']))} tokens.",
        )
    if trace.dropped:
        page.heading("Rows dropped")
        page.table(("reason", "rows"), [(why, f"{count:,}") for why, count in trace.dropped.items()])
    if trace.notes:
        page.heading("Notes")
        page.table(("note", "value"), [(name, str(value)) for name, value in trace.notes.items()])
    try:
        page.write(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from error


def rate_over_time(times: Floats, bins: int) -> tuple[Floats, Floats]:
    """(middle of bin [s], requests per second) in `bins` equal bins over the trace."""
    span = float(times[-1] - times[0])
    if not span:
        return times[:1], np.array([float(len(times))])
    # The last arrival closes the last bin instead of opening one of its own.
    found = counts(times, span / bins * (1 + 1e-9))
    found = np.pad(found, (0, bins - len(found)))
    width = span / bins
    return times[0] + width * (np.arange(bins) + 0.5), found / width


def _rate(times: Floats) -> Any:
    from plotly import graph_objects as go

    middle, rate = rate_over_time(times, 240)
    figure = go.Figure(go.Scatter(x=middle, y=rate, mode="lines", line_shape="hvh", name="rate"))
    return figure.update_layout(xaxis_title="time [s]", yaxis_title="requests/s", yaxis_rangemode="tozero")


def _gaps(times: Floats) -> Any:
    from plotly import graph_objects as go

    gaps = np.sort(np.diff(times))
    longer = 1 - np.arange(1, len(gaps) + 1) / len(gaps)
    shown = _spread(len(gaps))
    x = np.linspace(0, float(gaps[-1]), 200)
    figure = go.Figure(
        [
            go.Scatter(x=gaps[shown], y=longer[shown], mode="lines", name="trace"),
            go.Scatter(x=x, y=np.exp(-x / gaps.mean()), mode="lines", line_dash="dash", name="Poisson"),
        ]
    )
    # The last gap is longer than none: its 0 has no place on a logarithmic axis.
    floor = np.log10(0.5 / len(gaps))
    return figure.update_layout(
        xaxis_title="gap [s]", yaxis={"title": "share of longer gaps", "type": "log", "range": [floor, 0.05]}
    )


def _lengths(trace: Trace) -> Any:
    from plotly import graph_objects as go

    figure = go.Figure()
    for name in ("prompt", "output"):
        tokens = np.sort(trace.requests[f"{name}_tokens"].to_numpy())
        shown = _spread(len(tokens))
        figure.add_scatter(x=tokens[shown], y=(shown + 1) / len(tokens), mode="lines", name=name)
    return figure.update_layout(xaxis={"title": "tokens", "type": "log"}, yaxis_title="share of requests")


def _reuse(reuse: dict[str, Any]) -> Any:
    from plotly import graph_objects as go

    curve = reuse["lru_blocks"]
    figure = go.Figure(go.Scatter(x=list(curve), y=list(curve.values()), mode="lines+markers", name="LRU"))
    figure.add_hline(y=reuse["blocks"], line_dash="dash")
    return figure.update_layout(
        xaxis={"title": "capacity [blocks]", "type": "log"},
        yaxis={"title": "blocks found", "tickformat": ".0%", "rangemode": "tozero"},
    )


def _spread(size: int, most: int = 1000) -> Any:
    """At most `most` of the indices 0 … size − 1, both ends included: enough points for a curve."""
    return np.unique(np.linspace(0, size - 1, min(size, most)).astype(np.int64))


def _number(value: float | None, unit: str = "") -> str:
    return "–" if value is None else f"{value:,.2f}{unit}"
