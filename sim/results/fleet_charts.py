"""The pictures of a fleet as plotly figures: how many replicas it had, and how its requests ended."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from ground.page import PALETTE
from sim.results.charts import colour, latest, time_unit
from sim.results.metric_names import STATUSES

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_BINS = 100
# Finished is green, what was turned away is yellow and orange, what was lost red, and what is not yet known grey.
_STATUS_COLOURS = dict(zip(STATUSES, (PALETTE[2], PALETTE[6], PALETTE[4], PALETTE[3], PALETTE[1], "#888"), strict=True))


def come_and_go(replicas: pl.DataFrame) -> bool:
    """Whether any replica was not there, ready, from the beginning to the end."""
    always = (pl.col("requested") == 0.0) & (pl.col("ready") == 0.0) & pl.col("ended").is_null()
    return not replicas.select(always.fill_null(False).all()).item()


def replicas_over_time(replicas: pl.DataFrame, requests: pl.DataFrame) -> Figure:
    """How many replicas are paid for (dotted) and how many of them are ready, of each pool and site.

    Args:
        replicas, requests: tables with the columns of `sim.results.tables`; the picture ends when both have.
    """
    from plotly.graph_objects import Figure

    figure = Figure()
    end = latest(*(requests[name] for name in ("arrival", "finish")), replicas["requested"], replicas["ended"])
    unit, size = time_unit(end)
    groups = replicas.group_by("pool", "site", maintain_order=True)
    for index, ((pool, site), rows) in enumerate(groups):
        name = " ".join(str(part) for part in dict.fromkeys((pool, site)) if part)  # a site's pool has its name
        for since, style, what in (("requested", "dot", "paid for"), ("ready", "solid", "ready")):
            time, count = _count(rows[since], rows["ended"], end)
            figure.add_scatter(
                x=time / size,
                y=count,
                name=f"{name}: {what}" if name else what,
                mode="lines",
                line={"color": colour(index), "dash": style, "width": 1.5, "shape": "hv"},
            )
    figure.update_xaxes(title=f"time ({unit})")
    figure.update_yaxes(title="replicas", rangemode="tozero", tickformat=",d")
    return figure.update_layout(showlegend=True)


def requests_by_status(requests: pl.DataFrame) -> Figure:
    """How many requests arrived in each hundredth of the run, by how they ended; statuses that occurred alone."""
    from plotly.graph_objects import Figure

    figure = Figure()
    span = latest(requests["arrival"])
    unit, size = time_unit(span)
    edges = np.linspace(0.0, span or 1.0, _BINS + 1)
    middle, width = (edges[:-1] + edges[1:]) / 2 / size, (edges[1] - edges[0]) / size
    for status, tint in _STATUS_COLOURS.items():
        arrivals = requests.filter(pl.col("status") == status)["arrival"].drop_nulls().to_numpy()
        if arrivals.size:
            count = np.histogram(arrivals, edges)[0]
            label = status.replace("_", " ")
            figure.add_bar(x=middle, y=count, width=width, name=label, marker={"color": tint, "line": {"width": 0}})
    figure.update_xaxes(title=f"arrival ({unit})")
    figure.update_yaxes(title="requests", rangemode="tozero")
    return figure.update_layout(barmode="stack", showlegend=True)


def _count(since: pl.Series, until: pl.Series, end: float) -> tuple[np.ndarray, np.ndarray]:
    """A step function (times, number from then on) of how many are there, from 0 to `end`; a null never comes."""
    there = since.is_not_null()
    begins, ends = since.filter(there).to_numpy(), until.filter(there).drop_nulls().to_numpy()
    time = np.concatenate(([0.0], begins, ends))
    change = np.concatenate(([0], np.ones(len(begins), dtype=int), -np.ones(len(ends), dtype=int)))
    times, place = np.unique(time, return_inverse=True)
    count = np.bincount(place, weights=change, minlength=len(times)).cumsum()
    return np.append(times, max(end, times[-1])), np.append(count, count[-1])
