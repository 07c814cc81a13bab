"""The commands `simctl run` and `simctl sweep`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ground.folder import refuse_existing
from sim.workers_options import workers_of, workers_options

# What only one command needs, or only at its end, is imported there: a command should begin at once.


@click.command()
@click.argument("scenario", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Folder to write; default runs/SCENARIO.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Override a key, e.g. fleet.replicas=8.")
@click.option("--force", is_flag=True, help="Replace the folder if it exists.")
def run(scenario: Path, output: Path | None, settings: tuple[str, ...], force: bool) -> None:
    """Simulate SCENARIO and write its tables, metrics and report."""
    from sim.study.scenario import load_scenario, parse_override
    from sim.study.simulate import simulate

    loaded = load_scenario(scenario, dict(parse_override(text) for text in settings))
    folder = output or Path("runs") / scenario.stem
    refuse_existing(folder, force=force)
    result = simulate(loaded)

    from sim.results.folder import write_run
    from sim.results.terminal import print_metrics

    write_run(folder, result, force=force)
    print_metrics(result.metrics)
    assumed = sum(assumption.source in ("assumed", "datasheet") for assumption in result.assumptions)
    click.echo(f"{folder / 'report.html'} ({assumed} of {len(result.assumptions)} inputs assumed: assumptions.json)")


@click.command()
@click.argument("study", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Folder to write, or to go on in.")
@workers_options
def sweep(study: Path, output: Path, workers: int | None, engine: str, address: str | None) -> None:
    """Simulate every point of STUDY; the same command goes on where it was interrupted."""
    from ground.progress import progress_bar
    from sim.results.display import metric_text
    from sim.results.terminal import print_winners
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

    sweeps.open_study_folder(loaded, output)
    try:
        with workers_of(engine, workers, address) as processes, progress_bar() as bar:
            task = bar.add_task("points", total=total, note="")

            def on_point(point: dict[str, Any]) -> None:
                points.append(point)
                bar.update(task, advance=1, note=note())

            sweeps.sweep(loaded, output, workers=processes, on_point=on_point)
    except KeyboardInterrupt:
        click.echo(f"interrupted: {len(points)} of {total} points are kept; the same command goes on", err=True)
        raise SystemExit(130) from None
    print_winners(output)
    failed = sum(point["status"] == "failed" for point in points)
    if failed:
        click.echo(f"{failed} of {total} points failed; their errors stand in points.parquet", err=True)
    click.echo(str(output / "report.html"))
