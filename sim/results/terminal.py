"""Results as tables on the terminal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Column, Table

from sim.results.display import metric_text
from sim.results.folder import read_run
from sim.results.metric_names import STATUSES, describe, flatten


def print_metrics(metrics: dict[str, Any]) -> None:
    """The metrics of a run that most people ask for first."""
    numbers = flatten(metrics)
    lost = [f"requests.{status}" for status in STATUSES if status not in ("finished", "rejected")]
    lost = [name for name in lost if numbers[name]]
    shown = (
        "requests.finished", "requests.rejected", *lost, "ttft.p50", "ttft.p99", "tpot.p50", "tpot.p99", "e2e.p50",
        "e2e.p99", "throughput.requests", "throughput.output_tokens", "slo.attainment", "slo.met", "goodput.requests",
        "kv.peak", "prefix_hit_rate", "preemptions", "gpu_seconds", "cost.total", "cost.per_million_output_tokens",
        "energy.joules_per_output_token", "placement.deadline_hit_rate",
    )  # fmt: skip
    table = Table("metric", "value", box=None, header_style="bold")
    table.columns[1].justify = "right"
    for name in shown:
        if numbers.get(name) is not None:
            table.add_row(describe(name).label, metric_text(name, numbers[name]))
    Console().print(table)


def print_winners(folder: Path) -> None:
    """The winners of a finished sweep, read from its folder, beside the baseline."""
    shown = ("goodput.requests", "slo.attainment", "ttft.p99", "tpot.p99", "throughput.output_tokens")
    table = Table(
        "", Column("setting", no_wrap=True), *(describe(name).label for name in shown), box=None, header_style="bold"
    )
    table.columns[1].overflow = "fold"
    winners = json.loads((folder / "winners.json").read_text(encoding="utf-8"))
    for winner in winners:
        run = read_run(folder / winner["run"])
        numbers = flatten(run.metrics)
        setting = (
            "\n".join(f"{key.rpartition('.')[2]} = {value}" for key, value in winner["parameters"].items())
            or "as in the scenario"
        )
        if run.quality is not None:
            setting += f"\n{run.quality}"
        table.add_row(winner["name"], setting, *(metric_text(name, numbers[name]) for name in shown))
    if not any(winner["name"] != "baseline" for winner in winners):
        click.echo("no point meets the SLO")
    Console().print(table)
