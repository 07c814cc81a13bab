"""`simctl validate`: replay on a real engine, compare with the prediction."""

from __future__ import annotations

from collections.abc import Callable
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
from validate.display import show, show_gains
from validate.measure import (
    Machine,
    is_measured,
    measure_reference,
    measure_server,
    measure_transformers,
    read_measurement,
)
from validate.quality.commands import quality, train
from validate.replay.openai import Server
from validate.report import write_report
from validate.sweep import candidates, collect, plan, study_folders, unfinished
from validate.validation import Policy, Validation, worst
from validate.winners import CheckedStudies, write_winners_report

_path = click.Path(path_type=Path)
_device = click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
_threads = click.option("--threads", type=click.IntRange(1), help="CPU threads; without it torch's own number.")
_weights = click.option(
    "--weights",
    type=_path,
    help="Safetensors file or folder; without it those beside the model, or random ones.",
)

_prompts = click.option(
    "--prompts",
    type=click.Choice(["random", "text"]),
    default="random",
    show_default=True,
    help="What the reference engine is asked; text is held-out text, for a model of bytes.",
)


@click.group()
def validate() -> None:
    """Check predictions against a real engine."""


validate.add_command(train)
validate.add_command(quality)


@validate.command()
@click.argument("studies", type=_path, nargs=-1, required=True)
@_device
@_threads
@_weights
@_prompts
@click.option("--top", type=click.IntRange(1), help="Only the best N winners of each, and the baseline.")
@click.option("--repeats", type=click.IntRange(1), default=3, show_default=True, help="Replays of each policy.")
@click.option("--quality", "qualities", type=_path, help="quality.json; without it the one that a scenario names.")
@click.option("-o", "--output", type=_path, help="Folder of the result; without it validation/ in the one study.")
def winners(
    studies: tuple[Path, ...],
    device: str,
    threads: int | None,
    weights: Path | None,
    prompts: str,
    top: int | None,
    repeats: int,
    qualities: Path | None,
    output: Path | None,
) -> None:
    """Replay the winners and the baseline of each of STUDIES in real time on the reference engine.

    STUDIES are folders of simctl sweep or search. Writes the measured runs, validation.json and report.html, of several
    studies also those of each in a folder of its own. Finished replays are kept: the same command goes on where it was
    interrupted.
    """
    folders = study_folders(studies, output)
    machine = Machine(device, threads, weights, prompts == "text")
    machine.facts()  # refuses what is not there before anything is read
    chosen = {name: candidates(study, name, top, qualities) for name, (study, _) in folders.items()}
    everybody = [candidate for of_study in chosen.values() for candidate in of_study]
    replays = plan(everybody, repeats, lambda candidate: folders[candidate.study][1])
    missing = unfinished(replays, lambda one: machine.with_weights_of(one.scenario.model).facts())
    refused: dict[str, dict[str, str]] = {name: {} for name in chosen}
    with progress_bar() as bar:
        requests = sum(len(replay.candidate.predicted.requests) for replay in missing)
        task = bar.add_task("replaying", total=requests, note="")
        try:
            for replay in missing:
                candidate = replay.candidate
                if candidate.name in refused[candidate.study]:
                    continue
                bar.update(task, note=f"{candidate.study}, {candidate.name}, repeat {replay.repeat} of {repeats}")
                try:
                    measure_reference(
                        candidate.scenario,
                        machine.with_weights_of(candidate.scenario.model),
                        replay.folder,
                        force=True,
                        on_finish=lambda: bar.advance(task),
                    )
                except UserError as error:
                    refused[candidate.study][candidate.name] = error.message
                    if sum(map(len, refused.values())) == len(everybody):
                        raise
        except KeyboardInterrupt:
            bar.stop()
            done = sum(is_measured(replay.folder) for replay in replays)
            _interrupted(f"{done} of {len(replays)} replays are kept; the same command goes on")
    validations = [collect(of_study, replays, refused[name]) for name, of_study in chosen.items()]
    for validation in validations:
        _report(validation, folders[validation.study][1])
    if len(validations) > 1:
        assert output is not None  # study_folders asks for it
        checked = CheckedStudies(validations)
        show_gains(checked.gains, Console())
        _write(output, checked.write_json, lambda path: write_winners_report(checked, path))


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
@_prompts
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
    prompts: str,
    settings: tuple[str, ...],
    force: bool,
    output: Path,
) -> None:
    """Replay the trace of SCENARIO in real time and write the measured run."""
    if engine == "openai" and url is None:
        raise UserError("--engine openai: --url is missing; expected the address of a server")
    if engine != "reference" and prompts == "text":
        raise UserError(f"--prompts text: belongs to --engine reference; expected random ones for {engine}")
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
                machine = Machine(device, threads, weights, prompts == "text").with_weights_of(loaded.model)
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
    _write(output, validation.write_json, lambda path: write_report(validation, path))


def _write(output: Path, write_json: Callable[[Path], None], write_page: Callable[[Path], None]) -> None:
    try:
        output.mkdir(parents=True, exist_ok=True)
        write_json(output / "validation.json")
        write_page(output / "report.html")
    except OSError as error:
        raise UserError(f"{output}: cannot be written ({error.strerror})") from error
    click.echo(str(output / "report.html"))


def _interrupted(what: str) -> NoReturn:
    click.echo(f"interrupted: {what}", err=True)
    raise SystemExit(130)
