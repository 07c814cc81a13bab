"""What would help, on the terminal and as a page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ground.page import PALETTE, Page
from sim.results.display import UNKNOWN, metric_text
from sim.results.metric_names import describe
from sim.study.remedies import REMEDIES
from sim.study.what_if import MEMORY, Trial, WhatIf

_HEADER = "remedy"


def print_what_if(found: WhatIf) -> None:
    """The scenario as it stands, then every remedy alone and the pairs, best first."""
    for title, trials in (("alone", found.alone), ("in pairs", found.pairs)):
        if not trials:
            continue
        table = Table(f"{_HEADER} ({title})", *_columns(found), box=None, header_style="bold")
        for column in table.columns[1:]:
            column.justify = "right"
        for row in _rows(found, [found.baseline, *trials]):
            table.add_row(*row)
        Console().print(table)


def write_what_if(found: WhatIf, name: str, path: Path) -> None:
    """One page: what each remedy gains, as a picture and in numbers, and what each of them is."""
    page = Page(
        f"{name}: what would help",
        f"Each remedy simulated alone and the best in pairs, ranked by {describe(found.objective).label}.",
    )
    page.figure(
        _figure(found),
        "Gain over the scenario as it stands; to the left of zero it is a loss. Memory stands in the tables.",
    )
    page.heading("Alone")
    page.table([_HEADER, *_columns(found)], _rows(found, [found.baseline, *found.alone]))
    if found.pairs:
        page.heading("In pairs")
        page.table([_HEADER, *_columns(found)], _rows(found, [found.baseline, *found.pairs]))
    page.heading("What the remedies are")
    texts = {remedy.name: remedy.text for remedy in REMEDIES}
    page.table(
        ["remedy", "what it does", "keys"],
        [
            (trial.remedies[0], texts[trial.remedies[0]], ", ".join(f"{k}={v}" for k, v in trial.settings.items()))
            for trial in found.alone
        ],
    )
    page.write(path)


def _columns(found: WhatIf) -> list[str]:
    return [describe(name).label for name in found.shown]


def _rows(found: WhatIf, trials: Sequence[Trial]) -> list[list[str]]:
    """The absolute value, and behind it the gain."""
    rows = []
    for trial in trials:
        title = " + ".join(trial.remedies) or "as it stands"
        if trial.error is not None:
            rows.append([title, f"failed: {trial.error}", *[""] * (len(found.shown) - 1)])
            continue
        cells = [metric_text(name, trial.metrics.get(name)) for name in found.shown]
        if trial.remedies:
            gains = [found.gain(trial, name) for name in found.shown]
            cells = [
                cell if gain is None or cell == UNKNOWN else f"{cell} {100 * gain:+.0f} %"
                for cell, gain in zip(cells, gains, strict=True)
            ]
        rows.append([title, *cells])
    return rows


def _figure(found: WhatIf):  # type: ignore[no-untyped-def]  # plotly is imported where it is needed
    from plotly.graph_objects import Bar, Figure

    trials = [trial for trial in (*found.pairs[:3], *found.alone) if trial.error is None]
    trials.sort(key=lambda trial: found.gain(trial, found.objective) or 0.0)
    names = [" + ".join(trial.remedies) for trial in trials]
    bars = [
        Bar(
            name=describe(metric).label,
            y=names,
            x=[100 * (found.gain(trial, metric) or 0.0) for trial in trials],
            orientation="h",
            marker={"color": PALETTE[index]},
        )
        for index, metric in enumerate(name for name in found.shown if name not in MEMORY)
    ]
    figure = Figure(bars)
    figure.update_layout(barmode="group", xaxis_title="gain, %", height=120 + 46 * len(names))
    return figure
