"""The command `simctl telemetry`: a run as OpenMetrics text and OpenTelemetry spans."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ground.errors import UserError
from ground.folder import refuse_existing

# What only the work itself needs is imported there: a command should begin at once.


@click.command()
@click.argument("run", metavar="RUN_DIR", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Folder to write; default RUN_DIR/telemetry.")
@click.option("--only", type=click.Choice(["metrics", "traces"]), help="Write one of the two; both if not given.")
@click.option("--interval", type=float, default=15.0, show_default=True, help="Seconds between two samples.")
@click.option("--epoch", default="2026-01-01T00:00:00Z", show_default=True, help="When the run's second 0 was.")
@click.option(
    "--sample", type=click.FloatRange(0, 1), default=0.01, show_default=True, help="Share of requests traced."
)
@click.option("--slowest", type=click.IntRange(min=0), default=20, show_default=True, help="Always traced, so many.")
@click.option("--steps", type=click.IntRange(min=0), default=1000, show_default=True, help="Spans of steps at most.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the choice of requests.")
@click.option("--force", is_flag=True, help="Replace the folder if it exists.")
def telemetry(
    run: Path,
    output: Path | None,
    only: str | None,
    interval: float,
    epoch: str,
    sample: float,
    slowest: int,
    steps: int,
    seed: int,
    force: bool,
) -> None:
    """Write a simulated or measured run as operators see a fleet.

    metrics.openmetrics.txt has vLLM's own metrics of every replica over time, as Prometheus would have scraped them;
    `promtool tsdb create-blocks-from openmetrics` takes it. traces.otlp.json has sampled requests as OpenTelemetry
    spans, from the client over the router to the engine's steps. telemetry.json says what they leave out.
    """
    from sim.results.folder import read_run
    from sim.results.telemetry.folder import TelemetrySettings, parse_epoch, write_telemetry

    if not (interval >= 0.001 and (interval * 1000).is_integer()):
        raise UserError(f"--interval {interval:g}: expected seconds above zero, in whole milliseconds")
    folder = output or run / "telemetry"
    began = parse_epoch(epoch)
    loaded = read_run(run)
    refuse_existing(folder, force=force)
    settings = TelemetrySettings(
        interval=interval,
        epoch=began,
        share=sample,
        slowest=slowest,
        most_steps=steps,
        seed=seed,
        longest=_longest(loaded.scenario),
        metrics=only != "traces",
        traces=only != "metrics",
    )
    _print(write_telemetry(folder, loaded, settings, force=force))
    click.echo(str(folder))


def _longest(scenario: dict[str, Any]) -> int | None:
    """Tokens of the longest sequence that an engine of the scenario takes."""
    from calibrate.model import load_model

    limit = scenario.get("engine", {}).get("max_model_len")
    if limit is not None:
        return int(limit)
    try:
        return load_model(scenario.get("model", "")).max_context
    except UserError:  # the file that it was read from is gone
        return None


def _print(about: dict[str, Any]) -> None:
    if metrics := about.get("metrics"):
        click.echo(
            f"{len(metrics['metrics'])} metrics of {metrics['replicas']} replicas, {metrics['samples']:,} samples of "
            f"each, named as in {metrics['names']}"
        )
        for name, why in metrics["left_out"].items():
            click.echo(f"left out vllm:{name}: {why}")
    if traces := about.get("traces"):
        click.echo(
            f"{traces['requests']:,} of {traces['of_requests']:,} requests traced, with {traces['step_spans']:,} of "
            f"{traces['of_steps']:,} rows of steps that they ran in"
        )
