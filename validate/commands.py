"""`simctl validate`: replay on a real engine, compare with the prediction."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

import click
from rich.console import Console

from calibrate.model import load_model
from ground.errors import UserError
from ground.folder import new_folder
from ground.progress import progress_bar
from sim.results.folder import read_run
from sim.study.scenario import load_scenario, parse_override
from sim.study.simulate import load_trace
from validate.allocator.recording import Recording
from validate.allocator.replay import replay as replay_allocator
from validate.display import show
from validate.measure import (
    Machine,
    is_measured,
    measure_reference,
    measure_server,
    measure_transformers,
    read_measurement,
)
from validate.replay.openai import Server
from validate.report import write_report
from validate.sweep import candidates, collect, plan, unfinished
from validate.validation import Policy, Validation, worst

_path = click.Path(path_type=Path)
_device = click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
_threads = click.option("--threads", type=click.IntRange(1), help="CPU threads; without it torch's own number.")
_weights = click.option("--weights", type=_path, help="Safetensors file or folder; without it random weights.")


@click.group()
def validate() -> None:
    """Check predictions against a real engine."""


@validate.command()
@click.argument("sweep_dir", type=_path)
@_device
@_threads
@_weights
@click.option("--top", type=click.IntRange(1), help="Only the best N winners, and the baseline.")
@click.option("--repeats", type=click.IntRange(1), default=3, show_default=True, help="Replays of each policy.")
@click.option("-o", "--output", type=_path, help="Folder of the result; without it SWEEP_DIR/validation.")
def winners(
    sweep_dir: Path,
    device: str,
    threads: int | None,
    weights: Path | None,
    top: int | None,
    repeats: int,
    output: Path | None,
) -> None:
    """Replay a sweep's winners and its baseline in real time on the reference engine.

    Writes the measured runs, validation.json and report.html. Finished replays are kept: the same command goes on where
    it was interrupted.
    """
    output = output or sweep_dir / "validation"
    machine = Machine(device, threads, weights)
    chosen = candidates(sweep_dir, top)
    replays = plan(chosen, repeats, output)
    missing = unfinished(replays, machine.facts())
    with progress_bar() as bar:
        requests = sum(len(replay.candidate.predicted.requests) for replay in missing)
        task = bar.add_task("replaying", total=requests, note="")
        try:
            for replay in missing:
                bar.update(task, note=f"{replay.candidate.name}, repeat {replay.repeat} of {repeats}")
                measure_reference(
                    replay.candidate.scenario,
                    machine,
                    replay.folder,
                    force=True,
                    on_finish=lambda: bar.advance(task),
                )
        except KeyboardInterrupt:
            bar.stop()
            done = sum(is_measured(replay.folder) for replay in replays)
            _interrupted(f"{done} of {len(replays)} replays are kept; the same command goes on")
    _report(collect(chosen, replays), output)


@validate.command()
@click.argument("scenario", type=_path)
@click.option(
    "--engine",
    type=click.Choice(["openai", "reference", "transformers"]),
    required=True,
    help="What to replay against.",
)
@click.option("--url", help="Address of an OpenAI-compatible server, with or without /v1.")
@click.option("--model-name", help="Model to ask the server for; without it the first that it lists.")
@click.option("--timeout", type=click.FloatRange(0, min_open=True), default=600.0, show_default=True, help="Seconds.")
@click.option("--vocabulary", type=click.IntRange(2), help="Token ids stay below this; without it the model's size.")
@click.option("--api-key-variable", metavar="NAME", help="Environment variable that holds the server's key.")
@_device
@_threads
@_weights
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Override a key of the scenario.")
@click.option("--force", is_flag=True, help="Replace the folder if it exists.")
@click.option("-o", "--output", type=_path, required=True, help="Folder of the measured run.")
def replay(
    scenario: Path,
    engine: str,
    url: str | None,
    model_name: str | None,
    timeout: float,
    vocabulary: int | None,
    api_key_variable: str | None,
    device: str,
    threads: int | None,
    weights: Path | None,
    settings: tuple[str, ...],
    force: bool,
    output: Path,
) -> None:
    """Replay the trace of SCENARIO in real time and write the measured run."""
    if engine == "openai" and url is None:
        raise UserError("--engine openai: --url is missing; expected the address of a server")
    if engine != "openai" and url is not None:
        raise UserError(f"--url {url}: belongs to --engine openai; the {engine} engine runs in this process")
    loaded = load_scenario(scenario, dict(parse_override(text) for text in settings))
    requests = len(load_trace(loaded).requests)
    # The folder first: that it can be written is known before the time of a replay is spent.
    with new_folder(output, force=force) as partial, progress_bar() as bar:
        task = bar.add_task("replaying", total=requests, note="")
        folder = partial / output.name
        try:
            if url is None:
                machine = Machine(device, threads, weights)
                measure = measure_transformers if engine == "transformers" else measure_reference
                measure(loaded, machine, folder, on_finish=lambda: bar.advance(task))
            else:
                size = vocabulary or load_model(loaded.model).vocab
                server = Server(url, model_name, timeout, size, api_key_variable)
                measure_server(loaded, server, folder, on_finish=lambda: bar.advance(task))
        except KeyboardInterrupt:
            bar.stop()
            _interrupted("nothing was written")
        for file in folder.iterdir():
            file.rename(partial / file.name)
        folder.rmdir()
    _, lateness, failures = read_measurement(output)
    for reason, count in failures.most_common():
        click.echo(f"{count} requests failed: {reason}", err=True)
    click.echo(f"{output / 'report.html'} (arrivals late by {1e3 * lateness.p99:.3g} ms at p99)")


@validate.command()
@click.argument("predicted", type=_path)
@click.argument("measured", type=_path, nargs=-1, required=True)
@click.option("-o", "--output", type=_path, required=True, help="Folder of the result.")
def compare(predicted: Path, measured: tuple[Path, ...], output: Path) -> None:
    """Compare the run folder PREDICTED with one or more repeats MEASURED of the same trace."""
    run = read_run(predicted)
    found = [read_measurement(folder) for folder in measured if is_measured(folder)]
    policy = Policy(run.name, run, [read_run(folder) for folder in measured])
    engine = found[0][0] if found else {}
    _report(Validation([policy], engine, worst([lateness for _, lateness, _ in found])), output)


@validate.command()
@click.argument("recording", type=_path)
@click.option(
    "--device-bytes", type=click.IntRange(1), help="Memory of the device; without it what the recording says."
)
@click.option("--limit", type=click.IntRange(1), help="Bytes that the process could reserve, if it was bounded.")
def allocator(recording: Path, device_bytes: int | None, limit: int | None) -> None:
    """Replay the allocator events in folder RECORDING on the simulated allocator; every one must be the same."""
    recorded = Recording.load(recording)
    total = device_bytes or recorded.facts.get("machine", {}).get("memory")
    if total is None:
        raise UserError(f"{recording}: does not say how much memory the device had; expected --device-bytes")
    replayed = replay_allocator(recorded, device_bytes=int(total), limit=limit)
    if replayed.difference is not None:
        click.echo(f"after {replayed.events:,} equal events: {replayed.difference}", err=True)
        raise SystemExit(1)
    click.echo(f"{replayed.events:,} events, {replayed.segments:,} segments and {replayed.blocks:,} blocks are equal")


def _report(validation: Validation, output: Path) -> None:
    show(validation, Console())
    try:
        output.mkdir(parents=True, exist_ok=True)
        validation.write_json(output / "validation.json")
        write_report(validation, output / "report.html")
    except OSError as error:
        raise UserError(f"{output}: cannot be written ({error.strerror})") from error
    click.echo(str(output / "report.html"))


def _interrupted(what: str) -> NoReturn:
    click.echo(f"interrupted: {what}", err=True)
    raise SystemExit(130)
