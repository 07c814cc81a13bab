"""The pictures of a run as plotly figures, written once for simulated and measured tables.

Every function takes its tables by name, so that runs (or replicas) lie over each other in one picture, each in the same
colour everywhere. Figures hold a bounded number of points however many requests the tables have.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from ground.page import PALETTE
from sim.results.display import seconds
from sim.results.metric_names import LATENCIES

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

# Seconds with an SI prefix: plotly writes 0.02 as "20ms". The unit stands at each tick.
_SECONDS_AXIS = {"tickformat": "~s", "ticksuffix": "s", "hoverformat": ".3~s"}
_LIMIT_LINE = {"color": "#b3390b", "dash": "dash", "width": 1.5}
_BUCKETS = 400


def latency_cdf(runs: Mapping[str, pl.DataFrame], latency: str, *, limit: float | None = None) -> Figure:
    """Share of finished requests whose `latency` ("ttft", "tpot", "e2e", "queue") is at most x.

    Args:
        runs: request tables by name.
        limit: the SLO's limit in seconds, drawn as a line.
    """
    from plotly.graph_objects import Figure

    figure = Figure()
    shares = _cdf_shares()
    everything = [_finished(requests, latency) for requests in runs.values()]
    for index, (name, values) in enumerate(zip(runs, everything, strict=True)):
        if values.size:
            x = np.quantile(values, shares, method="inverted_cdf")
            figure.add_scatter(x=x, y=shares, name=name, mode="lines", line={"color": colour(index), "shape": "hv"})
    if limit is not None:
        # A line of data, because plotly misplaces the text of a vertical line on a logarithmic axis.
        label = f"SLO limit {seconds(limit)}"
        figure.add_scatter(x=[limit, limit], y=[0, 1], name=label, mode="lines", line=_LIMIT_LINE, cliponaxis=False)
    figure.update_xaxes(title=LATENCIES[latency], **latency_axis(everything))
    figure.update_yaxes(title="share of finished requests", tickformat=".0%", range=[0, 1.01])
    return figure.update_layout(showlegend=len(figure.data) > 1)


def quantile_quantile(predicted: pl.DataFrame, measured: pl.DataFrame, latency: str) -> Figure:
    """Each quantile of `latency` as predicted over the same quantile as measured; a perfect prediction is the diagonal.

    Both are request tables; the quantiles are the percentiles 1 to 99, 99.5 and 99.9 over finished requests.
    """
    from plotly.graph_objects import Figure

    figure = Figure()
    percentiles = np.concatenate((np.arange(1, 100), (99.5, 99.9)))
    both = [_finished(predicted, latency), _finished(measured, latency)]
    if all(values.size for values in both):
        y, x = (np.percentile(values, percentiles) for values in both)
        ends = [min(x[0], y[0]), max(x[-1], y[-1])]
        figure.add_scatter(x=ends, y=ends, name="perfect", mode="lines", line={"color": "#888", "dash": "dot"})
        figure.add_scatter(
            x=x,
            y=y,
            name=LATENCIES[latency],
            mode="markers",
            marker={"color": colour(0), "size": 6},
            customdata=percentiles,
            hovertemplate="p%{customdata}: measured %{x}, predicted %{y}<extra></extra>",
        )
    axis = latency_axis(both)
    figure.update_xaxes(title=f"measured {LATENCIES[latency]}", **axis)
    figure.update_yaxes(title=f"predicted {LATENCIES[latency]}", **axis)
    return figure.update_layout(showlegend=False)


def latency_over_arrival(
    runs: Mapping[str, pl.DataFrame], latency: str, *, limit: float | None = None, most_points: int = 2000
) -> Figure:
    """Each finished request as a point: its `latency` over its arrival.

    Of a run with more than `most_points` requests every k-th by arrival is drawn, and the slowest hundredth of the
    points whatever their place, so that no outlier hides.
    """
    from plotly.graph_objects import Figure

    figure = Figure()
    span = latest(*(requests["arrival"] for requests in runs.values()))
    unit, size = time_unit(span)
    shown = {}
    for name, requests in runs.items():
        rows = requests.filter((pl.col("status") == "finished") & pl.col(latency).is_not_null())
        rows = rows.select("request_id", "arrival", pl.col(latency).alias("latency")).sort("arrival", "request_id")
        shown[name] = _thin(rows, most_points)
    for index, (name, rows) in enumerate(shown.items()):
        figure.add_scatter(
            x=(rows["arrival"] / size).to_numpy(),
            y=rows["latency"].to_numpy(),
            name=name,
            mode="markers",
            marker={"color": colour(index), "size": 4, "opacity": 0.5},
            customdata=rows["request_id"].to_numpy(),
            hovertemplate="request %{customdata}: %{y}<extra></extra>",
        )
    if limit is not None and span:
        label = f"SLO limit {seconds(limit)}"
        figure.add_scatter(
            x=[0, span / size], y=[limit, limit], name=label, mode="lines", line=_LIMIT_LINE, cliponaxis=False
        )
    axis = latency_axis([rows["latency"].to_numpy() for rows in shown.values()])
    figure.update_xaxes(title=f"arrival ({unit})")
    figure.update_yaxes(title=LATENCIES[latency], **axis)
    return figure.update_layout(showlegend=len(figure.data) > 1)


def timeline(lines: Mapping[str, pl.DataFrame], *, kv_blocks: int | None) -> Figure:
    """Running requests, waiting requests and KV use over time, a line for each step table in `lines`.

    A table of several replicas is summed. Long lines are thinned to the first, last, lowest and highest point of each
    of 400 spans of time, which looks the same and keeps every peak.

    Args:
        kv_blocks: blocks that each line shares out; KV use is drawn as a share of them, or in blocks where unknown.
    """
    from plotly.subplots import make_subplots

    rows = (("running", "running<br>requests"), ("waiting", "waiting<br>requests"), ("kv_blocks", "KV blocks<br>held"))
    figure = make_subplots(rows=3, cols=1, shared_xaxes=True, vertical_spacing=0.06)
    span = latest(*(steps["end"] for steps in lines.values()))
    unit, size = time_unit(span)
    for index, (name, steps) in enumerate(lines.items()):
        for row, (column, _) in enumerate(rows, 1):
            time, value = _thin_line(*_sum_over_replicas(steps, column), span)
            if column == "kv_blocks" and kv_blocks:
                value = value / kv_blocks
            figure.add_scatter(
                x=time / size,
                y=value,
                name=name,
                legendgroup=name,
                showlegend=row == 1 and len(lines) > 1,
                mode="lines",
                line={"color": colour(index), "width": 1.25, "shape": "hv"},
                row=row,
                col=1,
            )
    for row, (_, title) in enumerate(rows, 1):
        figure.update_yaxes(title=title, rangemode="tozero", row=row, col=1)
    if kv_blocks:
        figure.update_yaxes(title="KV blocks<br>in use", tickformat=".0%", row=3, col=1)
    figure.update_xaxes(title=f"time ({unit})", row=3, col=1)
    return figure


def by_replica(steps: pl.DataFrame) -> dict[str, pl.DataFrame]:
    """The step table cut by replica, as lines for `timeline`."""
    replicas = sorted(steps["replica"].unique().to_list())
    return {f"replica {replica}": steps.filter(pl.col("replica") == replica) for replica in replicas}


def throughput(runs: Mapping[str, pl.DataFrame]) -> Figure:
    """Output tokens per second, and finished beside arriving requests per second, over time.

    Args:
        runs: request tables by name. A request's output tokens are spread evenly from its first token to its finish,
            which is exact where its TPOT is steady; arrivals are those of the first run.
    """
    from plotly.subplots import make_subplots

    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.08)
    span = latest(*(requests[column] for requests in runs.values() for column in ("arrival", "finish")))
    unit, size = time_unit(span)
    edges = np.linspace(0.0, span or 1.0, 101)
    middle, width = (edges[:-1] + edges[1:]) / 2 / size, edges[1] - edges[0]

    def add(rate: np.ndarray, row: int, name: str, line: dict[str, Any], legend: bool) -> None:
        figure.add_scatter(x=middle, y=rate, name=name, mode="lines", line=line, showlegend=legend, row=row, col=1)

    for index, (name, requests) in enumerate(runs.items()):
        done = requests.filter(pl.col("status") == "finished")
        line = {"color": colour(index), "width": 1.5}
        if index == 0:
            arrivals = np.histogram(requests["arrival"].drop_nulls().to_numpy(), edges)[0] / width
            add(arrivals, 2, "arriving", {"color": "#888", "dash": "dot", "width": 1.5}, True)
        add(np.diff(_tokens_until(done, edges)) / width, 1, name, line, False)
        finishes = np.histogram(done["finish"].to_numpy(), edges)[0] / width
        add(finishes, 2, name if len(runs) > 1 else "finishing", line, True)
    figure.update_yaxes(title="output<br>tokens/s", rangemode="tozero", row=1, col=1)
    figure.update_yaxes(title="requests/s", rangemode="tozero", row=2, col=1)
    return figure.update_xaxes(title=f"time ({unit})", row=2, col=1)


def latency_axis(samples: list[np.ndarray]) -> dict[str, Any]:
    """An axis of seconds; logarithmic where the bulk of the values spans more than a factor of twenty."""
    values = np.concatenate([*samples, np.empty(0)])
    if not values.size or values.min() <= 0 or np.quantile(values, 0.99) < 20 * np.quantile(values, 0.01):
        return _SECONDS_AXIS
    low, high = int(np.floor(np.log10(values.min()))), int(np.ceil(np.log10(values.max())))
    ticks = [digit * 10.0**power for power in range(low, high + 1) for digit in ((1, 2, 5) if high - low < 4 else (1,))]
    # Plotly leaves the unit out at 2 and 5, so the ticks are spelt out.
    return {"type": "log", "tickvals": ticks, "ticktext": [seconds(tick) for tick in ticks], "hoverformat": ".3~s"}


def colour(index: int) -> str:
    """Of the line with that place among those of a picture."""
    return PALETTE[index % len(PALETTE)]


def _finished(requests: pl.DataFrame, latency: str) -> np.ndarray:
    return requests.filter(pl.col("status") == "finished")[latency].drop_nulls().to_numpy()


def _cdf_shares() -> np.ndarray:
    """200 even steps, and finer ones towards the tail, where the limits are."""
    return np.unique(np.concatenate((np.linspace(0, 1, 201), 1 - np.geomspace(1e-4, 5e-3, 20))))


def latest(*times: pl.Series) -> float:
    """The latest time of all, in seconds; 0 where there is none."""
    each: list[Any] = [series.max() for series in times if series.count()]
    return float(max(each, default=0.0))


def time_unit(span: float) -> tuple[str, float]:
    """The unit in which so many seconds read well, and its seconds."""
    for unit, size in (("hours", 3600.0), ("minutes", 60.0)):
        if span > 3 * size:
            return unit, size
    return "seconds", 1.0


def _thin(rows: pl.DataFrame, most_points: int) -> pl.DataFrame:
    if len(rows) <= most_points:
        return rows
    slowest = rows.top_k(most_points // 100, by=["latency", "request_id"])
    every = -(-len(rows) // (most_points - len(slowest)))
    return pl.concat([rows.gather_every(every), slowest]).unique().sort("arrival", "request_id")


def _sum_over_replicas(steps: pl.DataFrame, column: str) -> tuple[np.ndarray, np.ndarray]:
    """A step function (times, value from then on) of `column` summed over replicas.

    Requests run and wait from the start of a step; none does between the end of a step and the start of a later one.
    Blocks are those at the end of a step and stay held.
    """
    if column == "kv_blocks":
        points = steps.select("replica", time="end", value=pl.col(column).cast(pl.Int64)).sort("time", "value")
    else:
        starts = steps.select("replica", time="start", value=pl.col(column).cast(pl.Int64))
        next_start = pl.col("start").shift(-1).over("replica")
        idle = steps.sort("start", "end").filter((next_start > pl.col("end")).fill_null(True))
        ends = idle.select("replica", time="end", value=pl.lit(0, pl.Int64))
        points = pl.concat([starts, ends]).sort("time", "value")
    changes = (
        points.with_columns(change=pl.col("value") - pl.col("value").shift(fill_value=0).over("replica"))
        .group_by("time")
        .agg(pl.col("change").sum())
        .sort("time")
    )
    return changes["time"].to_numpy(), changes["change"].cum_sum().to_numpy()


def _thin_line(time: np.ndarray, value: np.ndarray, span: float) -> tuple[np.ndarray, np.ndarray]:
    """First, last, lowest and highest point of each bucket: the same pixels, fewer points (M4: Jugel, VLDB 2014)."""
    if time.size <= 4 * _BUCKETS:
        return time, value
    bucket = np.minimum((time / span * _BUCKETS).astype(int), _BUCKETS - 1)
    by_value = np.lexsort((value, bucket))
    ordered = bucket[by_value]
    new = np.flatnonzero(np.diff(bucket, prepend=-1))
    new_by_value = np.flatnonzero(np.diff(ordered, prepend=-1))
    last, highest = np.append(new[1:], time.size) - 1, np.append(new_by_value[1:], time.size) - 1
    keep = np.unique(np.concatenate((new, last, by_value[new_by_value], by_value[highest])))
    return time[keep], value[keep]


def _tokens_until(finished: pl.DataFrame, times: np.ndarray) -> np.ndarray:
    """Output tokens made by all of `finished` until each of `times`: the first at once, the others at a steady rate."""
    rows = finished.drop_nulls(["first_token", "finish"])
    first, last = rows["first_token"].to_numpy(), rows["finish"].to_numpy()
    others = rows["output_tokens"].to_numpy() - 1.0
    lasting = last > first
    made = np.searchsorted(np.sort(first), times, side="right").astype(float)
    at_once = np.sort(first[~lasting])
    sums = np.concatenate(([0.0], np.cumsum(others[~lasting][np.argsort(first[~lasting], kind="stable")])))
    made += sums[np.searchsorted(at_once, times, side="right")]
    first, last, others = first[lasting], last[lasting], others[lasting]
    rate = others / (last - first)
    # Each request adds rate·(t − first) from its first token on, and takes rate·(t − last) back from its finish on.
    for begin, sign in ((first, 1.0), (last, -1.0)):
        order = np.argsort(begin, kind="stable")
        rates = np.concatenate(([0.0], np.cumsum(rate[order])))
        offsets = np.concatenate(([0.0], np.cumsum((rate * begin)[order])))
        count = np.searchsorted(begin[order], times, side="right")
        made += sign * (rates[count] * times - offsets[count])
    return made
