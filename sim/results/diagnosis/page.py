"""The page of a diagnosis: the main cause in a sentence, then the pictures, then the numbers behind them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from ground.page import PALETTE, Page, Tone
from sim.results.charts import latency_over_arrival
from sim.results.diagnosis.causes import CAUSES
from sim.results.diagnosis.diagnosis import Diagnosis
from sim.results.diagnosis.words import cause_rows, lead, notes, trend_rows, trend_sentence
from sim.results.display import digits, seconds, share

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_BUCKETS = 60  # of arrivals, in the picture over time
_MOST_COLOURS = len(PALETTE)


def write_page(diagnosis: Diagnosis, path: Path) -> None:
    """Write the diagnosis as one self-contained HTML file at `path`."""
    page = Page(f"Diagnosis of {diagnosis.name}", lead(diagnosis))
    page.text(diagnosis.sentence)
    if changed := trend_sentence(diagnosis):
        page.text(changed)
    page.numbers(_tiles(diagnosis))
    for note in notes(diagnosis):
        page.text(note)
    page.heading("Causes")
    page.figure(_bars(diagnosis), "Mean seconds of a request by cause.", height=120 + 34 * len(diagnosis.ranking))
    page.table(*cause_rows(diagnosis), "Seconds of all finished requests together; they sum to their whole latency.")
    page.heading("Over time")
    page.figure(
        _over_arrival(diagnosis), "Mean E2E latency by the time of arrival, stacked by cause; equal spans.", height=420
    )
    page.figure(
        latency_over_arrival({diagnosis.name: diagnosis.attributed.with_columns(status=pl.lit("finished"))}, "e2e"),
        "E2E latency of each request over its arrival; of long runs a sample and the slowest.",
        height=320,
    )
    if diagnosis.trend is not None:
        page.table(*trend_rows(diagnosis), f"Mean of a request: {diagnosis.trend.what}, by arrival.")
    page.heading("What the causes mean")
    page.table(["cause", "meaning", "what usually helps"], _meanings(diagnosis))
    page.write(path)


def _tiles(diagnosis: Diagnosis) -> list[tuple[str, str, Tone]]:
    tiles: list[tuple[str, str, Tone]] = []
    if diagnosis.ranking:
        main = diagnosis.ranking[0]
        tiles.append((f"of the latency: {CAUSES[main].label}", share(diagnosis.share(main)), "bad"))
    tiles.append(("E2E latency mean", seconds(diagnosis.all.mean), "plain"))
    tiles.append(("mean of the slowest 1 %", seconds(diagnosis.slowest.mean), "plain"))
    if diagnosis.trend is not None and diagnosis.trend.first.mean:
        change = diagnosis.trend.last.mean / diagnosis.trend.first.mean - 1
        tiles.append((f"mean E2E latency, {diagnosis.trend.what}", f"{100 * change:+.0f} %", "plain"))
    if diagnosis.explained is not None:
        tiles.append(("of the steps' time, by the profile", f"{digits(100 * diagnosis.explained)} %", "plain"))
    return tiles


def _colours(diagnosis: Diagnosis) -> dict[str, str]:
    """The largest causes have colours of their own, in the order of the ranking; the rest share the last."""
    return {cause: PALETTE[min(i, _MOST_COLOURS - 1)] for i, cause in enumerate(diagnosis.ranking)}


def _bars(diagnosis: Diagnosis) -> Figure:
    from plotly.graph_objects import Figure

    figure = Figure()
    causes = diagnosis.ranking
    labels = [CAUSES[cause].label for cause in causes]
    parts = (("all requests", diagnosis.all, PALETTE[0]), ("slowest 1 %", diagnosis.slowest, PALETTE[1]))
    for name, part, colour in parts:
        values = [part.causes[cause] for cause in causes]
        figure.add_bar(x=values, y=labels, name=name, orientation="h", marker={"color": colour})
    figure.update_yaxes(autorange="reversed")
    return figure.update_xaxes(title="seconds a request", tickformat="~s", ticksuffix="s", rangemode="tozero")


def _over_arrival(diagnosis: Diagnosis) -> Figure:
    """Means over equal spans of arrival; where nobody arrived the line goes on from span to span."""
    from plotly.graph_objects import Figure

    figure = Figure()
    arrival = diagnosis.attributed["arrival"].to_numpy()
    begin, span = float(arrival.min()), float(np.ptp(arrival))
    buckets = min(_BUCKETS, max(1, len(arrival) // 20))
    place = np.minimum(((arrival - begin) / (span or 1.0) * buckets).astype(int), buckets - 1)
    count = np.bincount(place, minlength=buckets)
    some = np.flatnonzero(count)
    unit, size = ("hours", 3600.0) if span > 10_800 else ("minutes", 60.0) if span > 180 else ("seconds", 1.0)
    middle = (begin + (some + 0.5) * span / buckets) / size
    for cause, colour in _colours(diagnosis).items():
        sums = np.bincount(place, weights=diagnosis.attributed[cause].to_numpy(), minlength=buckets)
        figure.add_scatter(
            x=middle,
            y=np.maximum(sums[some] / count[some], 0.0),  # rounding may leave less than nothing
            name=CAUSES[cause].label,
            mode="lines",
            line={"width": 0.5, "color": colour},
            fillcolor=colour,
            stackgroup="causes",
        )
    figure.update_xaxes(title=f"arrival ({unit})")
    return figure.update_yaxes(title="mean E2E latency", tickformat="~s", ticksuffix="s", rangemode="tozero")


def _meanings(diagnosis: Diagnosis) -> list[list[str]]:
    rows = []
    for cause in diagnosis.ranking:
        what = CAUSES[cause]
        keys = f": {', '.join(what.remedies)}" if what.remedies else ""
        rows.append([what.label, what.meaning, what.advice + keys])
    return rows
