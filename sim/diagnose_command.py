"""The command `simctl diagnose`: what a run waited for, or what would help a scenario."""

from __future__ import annotations

import os
from pathlib import Path

import click
from click.core import ParameterSource

from ground.errors import UserError
from ground.folder import refuse_existing

# What only the work itself needs is imported there: a command should begin at once.

_MEASUREMENT = "measurement.json"  # beside the tables of a measured run
# Options that mean something to a run, and to a scenario, only.
_OF_A_RUN = {"profile": "--profile", "force": "--force"}
_OF_A_SCENARIO = {"objective": "--objective", "settings": "--set", "workers": "--workers"}


@click.command()
@click.argument("target", metavar="RUN_DIR|SCENARIO", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="Folder to write; default RUN_DIR/diagnosis, or runs/SCENARIO-what-if.",
)
@click.option("--profile", help="Of RUN_DIR: take steps apart by this profile instead of the scenario's.")
@click.option("--force", is_flag=True, help="Of RUN_DIR: replace the folder if it exists.")
@click.option("--what-if", "try_remedies", is_flag=True, help="Simulate every remedy that applies to SCENARIO.")
@click.option("--objective", default="e2e.p99", show_default=True, help="With --what-if: the metric to rank by.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="With --what-if: override a key.")
@click.option("--workers", type=click.IntRange(min=1), help="With --what-if: processes; default one a core.")
@click.pass_context
def diagnose(
    context: click.Context,
    target: Path,
    output: Path | None,
    profile: str | None,
    force: bool,
    try_remedies: bool,
    objective: str,
    settings: tuple[str, ...],
    workers: int | None,
) -> None:
    """Say what the requests of a simulated or measured run waited for; or with --what-if, what would help a scenario.

    Every second of every finished request's latency gets a cause. Writes the ranking (diagnosis.json), requests by
    cause (requests.parquet), flame graphs for speedscope, a timeline for Perfetto, and a page.

    With --what-if every remedy that applies is simulated alone, and the best ones in pairs; the same command goes on
    where it was interrupted.
    """
    _refuse_what_is_of_the_other(context, target, try_remedies)
    if try_remedies:
        _what_if(target, output or Path("runs") / f"{target.stem}-what-if", objective, settings, workers)
    else:
        _diagnose(target, output or target / "diagnosis", profile, force)


def _refuse_what_is_of_the_other(context: click.Context, target: Path, try_remedies: bool) -> None:
    """A run is diagnosed, and remedies are tried on a scenario: what belongs to the one means nothing to the other."""
    if try_remedies and target.is_dir():
        raise UserError(f"{target}: is a folder; expected a scenario file, on which --what-if tries remedies")
    if not try_remedies and target.is_file():
        raise UserError(f"{target}: is a file; expected the output folder of a run, or --what-if with a scenario")
    for name, option in (_OF_A_RUN if try_remedies else _OF_A_SCENARIO).items():
        if context.get_parameter_source(name) is not ParameterSource.DEFAULT:
            wanted = "no --what-if, which takes a scenario" if try_remedies else "--what-if and a scenario"
            raise UserError(f"{option}: was given with {target}; expected {wanted}")


def _diagnose(run: Path, folder: Path, profile: str | None, force: bool) -> None:
    from sim.results.diagnosis.diagnosis import diagnose as find_causes
    from sim.results.diagnosis.diagnosis import sees_steps
    from sim.results.diagnosis.folder import write_diagnosis
    from sim.results.diagnosis.terminal import print_diagnosis
    from sim.results.folder import read_run

    refuse_existing(folder, force=force)
    loaded = read_run(run)
    measured = (run / _MEASUREMENT).is_file()
    times = None
    if sees_steps(loaded):
        from sim.study.pool_scenario import step_times_of
        from sim.study.scenario import absolute_path, make_scenario

        overrides = {} if profile is None else {"profile": absolute_path("profile", profile, Path.cwd())}
        scenario = make_scenario(loaded.scenario, overrides, run, str(run / "scenario.yaml"))
        times = step_times_of(scenario)
    found = find_causes(loaded, times, measured=measured, simulated_with=profile is None)
    write_diagnosis(folder, loaded, found, force=force)
    print_diagnosis(found)
    click.echo(str(folder / "diagnosis.html"))


def _what_if(scenario: Path, folder: Path, objective: str, settings: tuple[str, ...], workers: int | None) -> None:
    from ground.progress import progress_bar
    from ground.spec import read_yaml
    from ground.whole_file import whole_file
    from sim.study.points import Point
    from sim.study.scenario import make_scenario, override, parse_override, with_absolute_paths
    from sim.study.what_if import open_what_if_folder, what_if
    from sim.study.what_if_report import print_what_if, write_what_if
    from sim.study.workers import LocalWorkers

    overrides = dict(parse_override(text) for text in settings)
    data = read_yaml(scenario)
    make_scenario(data, overrides, scenario.parent, str(scenario))  # its mistakes are named with the file
    data = with_absolute_paths(override(data, overrides, str(scenario)), scenario.parent)
    open_what_if_folder(data, folder, objective)
    finished = 0
    try:
        with progress_bar() as bar, LocalWorkers(workers or os.cpu_count() or 1) as processes:
            task = bar.add_task("remedies", total=None, note="")

            def on_point(point: Point, total: int) -> None:
                nonlocal finished
                finished = max(finished, point["point"] + 1)
                bar.update(task, completed=finished, total=total)

            found = what_if(data, folder, objective=objective, workers=processes, on_point=on_point)
    except KeyboardInterrupt:
        click.echo("interrupted: what was simulated is kept; the same command goes on", err=True)
        raise SystemExit(130) from None
    with whole_file(folder / "what-if.html") as partial:
        write_what_if(found, scenario.stem, partial)
    print_what_if(found)
    click.echo(str(folder / "what-if.html"))
