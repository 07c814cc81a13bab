"""Symptoms of a serving engine that gets slower, simulated: what was reported, what comes out, what a remedy gives.

    python examples/slowdown/run.py -o runs/slowdown

A scenario has stated, plausible parameters. One of them is calibrated on the first figure of its row, and the row's
second figure is then a prediction; where the physics of a run does not give it, the row says what it does give.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import click
from plotly.graph_objects import Figure
from rich.console import Console
from rich.table import Table

from ground.folder import new_folder, refuse_existing
from ground.page import Page
from ground.progress import progress_bar

sys.path.insert(0, str(Path(__file__).parent))

import communication
import lengths
import many_sessions
import model_reloads
import no_cache
import pipeline
import reuse
from symptom import Symptom

SYMPTOMS: dict[str, Callable[[], Symptom]] = {
    "lengths": lengths.run,
    "no_cache": no_cache.run,
    "reuse": reuse.run,
    "pipeline": pipeline.run,
    "communication": communication.run,
    "model_reloads": model_reloads.run,
    "many_sessions": many_sessions.run,
}


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(list(SYMPTOMS)))
@click.option("-o", "--output", type=click.Path(path_type=Path), default=Path("runs/slowdown"), show_default=True)
@click.option("--force", is_flag=True, help="Replace the folder if it exists.")
def main(names: tuple[str, ...], output: Path, force: bool) -> None:
    """Simulate the symptoms called NAMES, all of them if none is given; print the table and write a page."""
    refuse_existing(output, force=force)
    found: list[Symptom] = []
    with progress_bar() as bar:
        chosen = names or tuple(SYMPTOMS)
        task = bar.add_task("symptoms", total=len(chosen), note="")
        for name in chosen:
            bar.update(task, note=name)
            found.append(SYMPTOMS[name]())
            bar.advance(task)
    table = Table("symptom", "figure", "reference", "simulated", "with the remedy", box=None, header_style="bold")
    for symptom in found:
        for place, row in enumerate(symptom.rows):
            table.add_row(symptom.title if place == 0 else "", row.figure, row.reference, row.simulated, row.remedy)
    Console().print(table)
    with new_folder(output, force=force) as partial:
        entries = [{"title": symptom.title, "rows": [asdict(row) for row in symptom.rows]} for symptom in found]
        (partial / "slowdown.json").write_text(json.dumps(entries, indent=2, ensure_ascii=False) + "\n", "utf-8")
        write_page(found, partial / "report.html")
    click.echo(str(output / "report.html"))


def write_page(found: list[Symptom], path: Path) -> None:
    page = Page("Why does it get slower?", "Symptoms of a serving engine, simulated, and what helps against them.")
    for symptom in found:
        page.heading(symptom.title)
        page.text(symptom.text)
        page.table(
            ["figure", "reference", "simulated", "with the remedy"],
            [(row.figure, row.reference, row.simulated, row.remedy) for row in symptom.rows],
        )
        for figure, caption in symptom.figures:
            assert isinstance(figure, Figure)
            page.figure(figure, caption)
    page.write(path)


if __name__ == "__main__":
    main()
