"""A diagnosis on the terminal."""

from __future__ import annotations

import click
from rich.console import Console
from rich.table import Table

from sim.results.diagnosis.diagnosis import Diagnosis
from sim.results.diagnosis.words import Rows, cause_rows, lead, notes, trend_rows, trend_sentence


def print_diagnosis(diagnosis: Diagnosis) -> None:
    """The ranking, the trend, and the main cause in a sentence."""
    click.echo(lead(diagnosis))
    for note in notes(diagnosis):
        click.echo(note)
    console = Console()
    console.print(_table(cause_rows(diagnosis)))
    if diagnosis.trend is not None:
        trend = diagnosis.trend
        counts = f"{trend.first.requests:,} and {trend.last.requests:,} requests, by arrival"
        click.echo(f"Trend, {trend.what} ({counts}), mean of a request:")
        console.print(_table(trend_rows(diagnosis)))
    for sentence in (diagnosis.sentence, trend_sentence(diagnosis)):
        if sentence:
            click.echo(sentence)


def _table(content: Rows) -> Table:
    header, rows = content
    table = Table(*header, box=None, header_style="bold")
    table.columns[0].no_wrap = True
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        table.add_row(*row)
    return table
