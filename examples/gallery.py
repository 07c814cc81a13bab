"""A command that runs examples by name, prints their tables and writes them, with pictures, to one page."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import click
from plotly.graph_objects import Figure, Scatter
from plotly.subplots import make_subplots
from rich.console import Console
from rich.table import Table

from ground.folder import new_folder, refuse_existing
from ground.page import Page
from ground.progress import progress_bar


@dataclass(frozen=True)
class Exhibit:
    """What one example came to: a table, and pictures with their captions."""

    title: str
    text: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    figures: Sequence[tuple[Figure, str]] = ()


def gallery(name: str, title: str, lead: str, exhibits: Mapping[str, Callable[[], Exhibit]]) -> click.Command:
    """The command; it writes `name`.json and report.html."""

    @click.command(help=f"Run the examples called NAMES, all of them if none is given. {lead}")
    @click.argument("names", nargs=-1, type=click.Choice(list(exhibits)))
    @click.option("-o", "--output", type=click.Path(path_type=Path), default=Path("runs", name), show_default=True)
    @click.option("--force", is_flag=True, help="Replace the folder if it exists.")
    def main(names: tuple[str, ...], output: Path, force: bool) -> None:
        refuse_existing(output, force=force)
        found: list[Exhibit] = []
        begin = perf_counter()
        with progress_bar() as bar:
            chosen = names or tuple(exhibits)
            task = bar.add_task(name, total=len(chosen), note="")
            for one in chosen:
                bar.update(task, note=one)
                found.append(exhibits[one]())
                bar.advance(task)
        console = Console()
        for exhibit in found:
            table = Table(*exhibit.header, title=exhibit.title, title_justify="left", box=None, header_style="bold")
            for row in exhibit.rows:
                table.add_row(*row)
            console.print(table, "")
        with new_folder(output, force=force) as partial:
            entries = [
                {"title": one.title, "rows": [dict(zip(one.header, row, strict=True)) for row in one.rows]}
                for one in found
            ]
            (partial / f"{name}.json").write_text(json.dumps(entries, indent=2, ensure_ascii=False) + "\n", "utf-8")
            _write_page(title, lead, found, partial / "report.html")
        click.echo(f"{output / 'report.html'} ({perf_counter() - begin:.0f} s)")

    return main


def _write_page(title: str, lead: str, found: Sequence[Exhibit], path: Path) -> None:
    page = Page(title, lead)
    for exhibit in found:
        page.heading(exhibit.title)
        page.text(exhibit.text)
        page.table(exhibit.header, exhibit.rows)
        for figure, caption in exhibit.figures:
            page.figure(figure, caption, height=figure.layout.height or 360)
    page.write(path)


def lines(
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    x: str,
    y: str,
    *,
    mode: str = "lines+markers",
    **layout: Any,
) -> Figure:
    """One line a name: its x and y values."""
    figure = Figure([Scatter(name=name, x=list(xs), y=list(ys), mode=mode) for name, (xs, ys) in curves.items()])
    figure.update_layout(xaxis_title=x, yaxis_title=y, **layout)
    return figure


def points(named: Mapping[str, tuple[float, float]], x: str, y: str) -> Figure:
    """One point a name, each of a shape of its own: there are more names than colours."""
    figure = Figure(
        [
            Scatter(name=name, x=[at_x], y=[at_y], mode="markers", marker={"symbol": shape, "size": 11})
            for shape, (name, (at_x, at_y)) in enumerate(named.items())
        ]
    )
    figure.update_layout(xaxis_title=x, yaxis_title=y)
    return figure


def rows_of_lines(curves: Mapping[str, tuple[Sequence[float], Sequence[float]]], x: str, y: str) -> Figure:
    """A row a name, one below the other on the same axes: where lines in one picture would hide each other."""
    figure = make_subplots(
        len(curves), 1, shared_xaxes=True, shared_yaxes="all", subplot_titles=list(curves), vertical_spacing=0.05
    )
    for row, (xs, ys) in enumerate(curves.values(), start=1):
        figure.add_scatter(x=list(xs), y=list(ys), mode="lines", row=row, col=1)
    figure.update_annotations(x=0, xanchor="left", font_size=12)
    figure.update_xaxes(title=x, row=len(curves))
    figure.update_yaxes(title=y, row=(len(curves) + 1) // 2)
    figure.update_layout(showlegend=False, height=90 + 75 * len(curves))
    return figure
