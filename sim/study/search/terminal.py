"""What a search found, on the terminal."""

from __future__ import annotations

import click
from rich.console import Console
from rich.table import Table

from sim.results.display import UNKNOWN
from sim.study.search.comparison import comparisons, shown_metrics
from sim.study.search.explore import BASELINE, Found
from sim.study.search.objectives import metric_named
from sim.study.search.report import interval_text, setting_text


def print_search(found: Found) -> None:
    """The winners' settings, then what they gain under fresh seeds and whether that is a difference."""
    counts = [trial.status for trial in found.trials.values()]
    said = ", ".join(f"{counts.count(status)} {status}" for status in dict.fromkeys(counts) if status != "ok")
    click.echo(f"{len(counts)} points" + (f" ({said})" if said else ""))
    if not found.winners:
        reasons = {trial.error for trial in found.trials.values() if trial.error}
        click.echo("no point keeps to the constraints" + (f"; {sorted(reasons)[0]}" if reasons else ""))
        return
    for place, number in enumerate(found.winners, 1):
        name = "the baseline itself" if number == BASELINE else setting_text(found.trials[number].setting)
        click.echo(f"winner {place}: point {number}, {name}")
    rows = comparisons(found)
    names = shown_metrics(found)
    table = Table("", *(metric_named(name).label for name in names), box=None, header_style="bold")
    shown = dict.fromkeys([*found.winners, *([BASELINE] if found.baseline is not None else [])])
    for number in shown:
        verdicts = {row.metric: row.verdict for row in rows if row.trial == number and row.other == BASELINE}
        cells = []
        for name in names:
            interval = found.fresh[number].interval(name, found.study.confidence)
            value = UNKNOWN if interval is None else interval_text(name, interval)
            cells.append(f"{value}\n{verdicts[name]}" if name in verdicts else value)
        table.add_row("baseline" if number == BASELINE else f"winner {found.winners.index(number) + 1}", *cells)
    Console().print(table)
    click.echo("under seeds that the search had not seen; better, worse or no difference: against the baseline")
