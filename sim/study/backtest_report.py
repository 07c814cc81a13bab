"""The page of a back-test: who predicts best, then the load with each forecast, then the errors by how far ahead."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from ground.page import PALETTE, Page
from sim.fleet.forecasters.forecaster import LEVELS, Floats
from sim.results.display import digits, seconds, share

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_POINTS = 800  # of the whole load
_SHOWN = 360  # intervals of a forecast that are drawn: the latest


def write_backtest_report(load: Floats, predictions: pl.DataFrame, result: dict[str, Any], path: Path) -> None:
    """`result` is what `forecast.json` says."""
    found, interval, unit = result["forecasters"], result["interval"], result["unit"]
    horizon = result["horizon"]
    page = Page(
        f"Forecast of {Path(result['trace']).name}",
        f"{unit} in intervals of {seconds(interval)}; from each origin the next {horizon} are predicted, "
        "and nothing that came after it is known.",
    )
    best = min(found, key=lambda name: found[name]["pinball"]["0.5"])
    page.numbers(
        [
            ("least pinball loss at 0.5", best, "plain"),
            ("its weighted error", share(found[best]["wape"]), "plain"),
            ("intervals predicted", f"{found[best]['intervals']:,}", "plain"),
            ("mean load", f"{digits(float(load.mean()))} {unit}", "plain"),
            ("season", seconds(result["season"]) if result["season"] else "none found", "plain"),
        ]
    )
    page.heading("Errors")
    page.table(
        ["forecaster", "MAPE", "weighted", f"MAE, {unit}", *(f"pinball {level:g}" for level in LEVELS), "in the band"],
        [
            [
                name, share(each["mape"]), share(each["wape"]), digits(each["mae"]),
                *(digits(each["pinball"][f"{level:g}"]) for level in LEVELS), share(each["within"]),
            ]
            for name, each in found.items()
        ],
        "MAPE: mean of |error| / load over intervals with a load; weighted: sum of |error| / sum of load. Pinball loss "
        f"in {unit}. The band from {LEVELS[0]:g} to {LEVELS[-1]:g} should hold {share(LEVELS[-1] - LEVELS[0])}.",
    )  # fmt: skip
    for name, why in result["left_out"].items():
        page.text(f"{name} is left out: {why}.")
    page.figure(_by_ahead(found, interval), "Weighted error by how far ahead.", height=320)
    if result["capacity"] is not None:
        _provisioning(page, result)
    page.heading("Load")
    page.figure(_load(load, result["first_origin"], interval, unit), "The whole trace; dashed: the first origin.")
    for place, name in enumerate(found):
        figure = _forecast(predictions.filter(pl.col("forecaster") == name), interval, unit, PALETTE[1 + place % 7])
        caption = f"{name}: the last {_SHOWN} predicted intervals at most, mean, and the band from {LEVELS[0]:g} to "
        page.figure(figure, caption + f"{LEVELS[-1]:g}.", height=300)
    page.write(path)


def _provisioning(page: Page, result: dict[str, Any]) -> None:
    page.heading("What it would have cost")
    rows = [
        (name, level, each["provisioning"][level])
        for name, each in result["forecasters"].items()
        for level in each["provisioning"]
    ]
    rows = [("needed", "", result["references"]["needed"]), ("fixed", "", result["references"]["fixed"]), *rows]
    page.table(
        ["forecaster", "quantile", "GPU-hours", "wasted", "missing", "time short"],
        [
            [
                name,
                level,
                digits(cost["gpu_hours"]),
                digits(cost["wasted"]),
                digits(cost["missing"]),
                share(cost["short"]),
            ]
            for name, level, cost in rows
        ],
        f"Replicas = the quantile / {result['capacity']:g} {result['unit']} a replica, rounded up, of {result['gpus']} "
        "GPU each. Needed: the load itself was known; fixed: always as many as the first history's peak asks for. "
        "Replicas are taken to be there when they are asked for.",
    )


def _by_ahead(found: dict[str, Any], interval: float) -> Figure:
    from plotly.graph_objects import Figure

    figure = Figure()
    for place, (name, each) in enumerate(found.items()):
        ahead = [entry["ahead"] * interval / 60 for entry in each["by_ahead"]]
        wape = [entry["wape"] for entry in each["by_ahead"]]
        line = {"color": PALETTE[1 + place % 7]}
        figure.add_scatter(x=ahead, y=wape, name=name, mode="lines+markers", line=line)
    figure.update_xaxes(title="ahead (minutes)")
    return figure.update_yaxes(title="weighted error", tickformat=".0%", rangemode="tozero")


def _load(load: Floats, first: int, interval: float, unit: str) -> Figure:
    from plotly.graph_objects import Figure

    each = max(1, -(-len(load) // _POINTS))
    whole = len(load) // each * each
    means = load[:whole].reshape(-1, each).mean(axis=1)
    hours = (np.arange(len(means)) + 0.5) * each * interval / 3600
    figure = Figure()
    figure.add_scatter(x=hours, y=means, mode="lines", name="load", line={"color": PALETTE[0], "width": 1.25})
    figure.add_vline(x=first * interval / 3600, line_dash="dash", line_color="#888")
    figure.update_xaxes(title="time (hours)")
    return figure.update_yaxes(title=unit, rangemode="tozero")


def _forecast(predictions: pl.DataFrame, interval: float, unit: str, colour: str) -> Figure:
    from plotly.graph_objects import Figure

    shown = predictions.sort("interval").tail(_SHOWN)
    hours = shown["interval"].to_numpy() * interval / 3600
    low, high = (shown[f"q{level:g}"].to_numpy() for level in (LEVELS[0], LEVELS[-1]))
    figure = Figure()
    figure.add_scatter(
        x=np.concatenate((hours, hours[::-1])),
        y=np.concatenate((high, low[::-1])),
        fill="toself",
        fillcolor=colour,
        opacity=0.25,
        line={"width": 0},
        hoverinfo="skip",
        name="band",
    )
    figure.add_scatter(
        x=hours, y=shown["load"].to_numpy(), mode="lines", name="load", line={"color": "#555", "width": 1}
    )
    figure.add_scatter(
        x=hours, y=shown["mean"].to_numpy(), mode="lines", name="mean", line={"color": colour, "width": 1.5}
    )
    figure.update_xaxes(title="time (hours)")
    return figure.update_yaxes(title=unit, rangemode="tozero")
