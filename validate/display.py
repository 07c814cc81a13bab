"""The end of a validation in the terminal: predicted against measured, whether the order held, and who gained."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sim.results.display import metric_text
from sim.results.metric_names import METRICS
from validate.gain_rows import HEADER, gain_row, signed_percent
from validate.gains import Gain
from validate.report import HEADLINES
from validate.validation import Validation


def show(validation: Validation, console: Console) -> None:
    table = Table(title="Predicted against measured")
    table.add_column("policy")
    table.add_column("metric")
    for column in ("predicted", "measured", "error"):
        table.add_column(column, justify="right")
    for policy in validation.policies:
        for index, name in enumerate(HEADLINES):
            metric = policy.comparison.metrics[name]
            table.add_row(
                policy.name if index == 0 else "",
                METRICS[name].label,
                metric_text(name, metric.predicted),
                metric_text(name, metric.measured),
                signed_percent(metric.error),
                end_section=index == len(HEADLINES) - 1,
            )
    console.print(table)
    verdicts = {name: rank.held for name, rank in validation.ranking.items() if rank.held is not None}
    if verdicts:
        flipped = [METRICS[name].label for name, held in verdicts.items() if not held]
        console.print(
            f"The predicted order of the policies held by {len(verdicts) - len(flipped)} of {len(verdicts)} metrics"
            + (f"; it flipped by {', '.join(flipped)}." if flipped else ".")
        )
    elif validation.ranking:
        console.print("The repeats differ by more than the policies do: their order cannot be told.")
    if validation.gains:
        show_gains(validation.gains, console)
    for study, name, why in validation.refusals:
        console.print(f"{study}, {name}: not replayed: {why}", markup=False)


def show_gains(gains: Sequence[Gain], console: Console) -> None:
    """One row a policy; first those whose gain was measured with the other sign."""
    table = Table(title="Winners checked")
    for column in HEADER:
        table.add_column(column, justify="right" if "gain" in column or column == "spread" else "left")
    for gain in gains:
        table.add_row(*map(escape, gain_row(gain)))
    console.print(table)
