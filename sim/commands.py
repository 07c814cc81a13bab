"""The commands `simctl run` and `simctl sweep`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Column, Table

from ground.folder import refuse_existing
from ground.progress import progress_bar


@click.command()
@click.argument("scenario", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Folder to write; default runs/SCENARIO.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Override a key, e.g. fleet.replicas=8.")
@click.option("--force", is_flag=True, help="Replace the folder if it exists.")
def run(scenario: Path, output: Path | None, settings: tuple[str, ...], force: bool) -> None:
    """Simulate SCENARIO and write its tables, metrics and report."""
    from sim.results.folder import write_run
    from sim.study.scenario import load_scenario, parse_override
    from sim.study.simulate import simulate

    loaded = load_scenario(scenario, dict(parse_override(text) for text in settings))
    folder = output or Path("runs") / scenario.stem
    refuse_existing(folder, force=force)
    result = simulate(loaded)
    write_run(
        folder,
        requests=result.requests,
        steps=result.steps,
        metrics=result.metrics,
        scenario=result.scenario,
        assumptions=result.assumptions,
        force=force,
    )
    _print_metrics(result.metrics)
    assumed = sum(assumption.source in ("assumed", "datasheet") for assumption in result.assumptions)
    click.echo(f"{folder / 'report.html'} ({assumed} of {len(result.assumptions)} inputs assumed: assumptions.json)")


@click.command()
@click.argument("study", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Folder to write, or to go on in.")
@click.option("--workers", type=click.IntRange(min=1), help="Processes; default: one a core.")
def sweep(study: Path, output: Path, workers: int | None) -> None:
    """Simulate every point of STUDY; the same command goes on where it was interrupted."""
    from sim.results.display import metric_text
    from sim.study import sweep as sweeps
    from sim.study.study import load_study

    loaded = load_study(study)
    total = len(loaded.settings())
    points: list[dict[str, Any]] = []

    def note() -> str:
        ranked = sweeps.best(points, loaded.objective)
        if not ranked:
            return "none meets the SLO yet"
        leader = next(point for point in points if point["point"] == ranked[0])
        return f"best {loaded.objective} {metric_text(loaded.objective, leader['metrics'][loaded.objective])}"

    sweeps.open_folder(loaded, output)
    try:
        with progress_bar() as bar:
            task = bar.add_task("points", total=total, note="")

            def on_point(point: dict[str, Any]) -> None:
                points.append(point)
                bar.update(task, advance=1, note=note())

            sweeps.sweep(loaded, output, workers=workers or os.cpu_count() or 1, on_point=on_point)
    except KeyboardInterrupt:
        click.echo(f"interrupted: {len(points)} of {total} points are kept; the same command goes on", err=True)
        raise SystemExit(130) from None
    _print_winners(output)
    failed = sum(point["status"] == "failed" for point in points)
    if failed:
        click.echo(f"{failed} of {total} points failed; their errors stand in points.parquet", err=True)
    click.echo(str(output / "report.html"))


def _print_metrics(metrics: dict[str, Any]) -> None:
    from sim.results.display import metric_text
    from sim.results.metric_names import describe, flatten

    numbers = flatten(metrics)
    shown = (
        "requests.finished", "requests.rejected", "ttft.p50", "ttft.p99", "tpot.p50", "tpot.p99", "e2e.p50", "e2e.p99",
        "throughput.requests", "throughput.output_tokens", "slo.attainment", "slo.met", "goodput.requests", "kv.peak",
        "prefix_hit_rate", "preemptions", "gpu_seconds", "cost.total", "cost.per_million_output_tokens",
    )  # fmt: skip
    table = Table("metric", "value", box=None, header_style="bold")
    table.columns[1].justify = "right"
    for name in shown:
        if numbers.get(name) is not None:
            table.add_row(describe(name).label, metric_text(name, numbers[name]))
    Console().print(table)


def _print_winners(folder: Path) -> None:
    import json

    from sim.results.display import metric_text
    from sim.results.folder import read_run
    from sim.results.metric_names import describe, flatten

    shown = ("goodput.requests", "slo.attainment", "ttft.p99", "tpot.p99", "throughput.output_tokens")
    table = Table(
        "", Column("setting", no_wrap=True), *(describe(name).label for name in shown), box=None, header_style="bold"
    )
    table.columns[1].overflow = "fold"
    winners = json.loads((folder / "winners.json").read_text(encoding="utf-8"))
    for winner in winners:
        numbers = flatten(read_run(folder / winner["run"]).metrics)
        setting = (
            "\n".join(f"{key.rpartition('.')[2]} = {value}" for key, value in winner["parameters"].items())
            or "as in the scenario"
        )
        table.add_row(winner["name"], setting, *(metric_text(name, numbers[name]) for name in shown))
    if not any(winner["name"] != "baseline" for winner in winners):
        click.echo("no point meets the SLO")
    Console().print(table)
