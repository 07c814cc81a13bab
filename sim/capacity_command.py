"""The command `simctl capacity`."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import click

from ground.errors import UserError
from sim.workers_options import workers_of, workers_options

# What only the work itself needs is imported there: a command should begin at once.


@click.command()
@click.argument("scenario", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Folder to write, or to go on in.")
@click.option(
    "--rate", type=click.FloatRange(min=0, min_open=True), help="Requests/s: find the fewest replicas for it."
)
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Override a key, e.g. fleet.replicas=8.")
@click.option(
    "--vary", multiple=True, metavar="KEY=[A, B]", help="Answer for each value, e.g. of engine.tensor_parallel."
)
@click.option(
    "--by",
    type=click.Choice(["stretch", "superpose"]),
    default="stretch",
    show_default=True,
    help="More load: the same requests faster, or more of them at the same time.",
)
@click.option("--seeds", default=3, show_default=True, type=click.IntRange(min=1), help="Traces that are drawn.")
@click.option(
    "--tolerance",
    default=0.02,
    show_default=True,
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Of a rate, as a share of it.",
)
@workers_options
def capacity(
    scenario: Path, output: Path | None, rate: float | None, settings: tuple[str, ...], vary: tuple[str, ...], by: str,
    seeds: int, tolerance: float, workers: int | None, engine: str, address: str | None,
) -> None:  # fmt: skip
    """Find the largest rate at which SCENARIO keeps its SLO, or the fewest replicas that keep it at a given rate."""
    from ground.progress import progress_bar
    from ground.spec import check_spec, read_yaml
    from sim.study.capacity.capacity import CapacityStudy, open_capacity_folder
    from sim.study.capacity.capacity import capacity as find
    from sim.study.capacity.report import print_capacity, write_capacity
    from sim.study.scenario import make_scenario, override, parse_override, with_absolute_paths

    overrides = dict(parse_override(text) for text in settings)
    data = read_yaml(scenario)
    make_scenario(data, overrides, scenario.parent, str(scenario))  # its mistakes are named with the file
    data = with_absolute_paths(override(data, overrides, str(scenario)), scenario.parent)
    asked = {"scenario": data, "rate": rate, "variants": _variants(vary), "by": by, "seeds": seeds}
    study = check_spec(CapacityStudy, {**asked, "tolerance": tolerance}, str(scenario))
    folder = output or Path("runs") / f"{scenario.stem}-capacity"
    open_capacity_folder(study, folder)
    done = 0
    try:
        with workers_of(engine, workers, address) as processes, progress_bar() as bar:
            task = bar.add_task("runs", total=None, note="")

            def on_run(_: object) -> None:
                nonlocal done
                done += 1
                bar.update(task, completed=done)

            found = find(study, folder, workers=processes, on_run=on_run)
            bar.update(task, total=done)
    except KeyboardInterrupt:
        click.echo(f"interrupted: {done} runs are kept; the same command goes on", err=True)
        raise SystemExit(130) from None
    write_capacity(found, scenario.stem, folder)
    print_capacity(found)
    click.echo(str(folder / "report.html"))


def _variants(vary: tuple[str, ...]) -> list[dict[str, Any]]:
    """Every combination of the values of `--vary KEY=[A, B]`; one that sets nothing where there is none."""
    from sim.study.scenario import parse_override
    from sim.study.study import known_key

    axes: dict[str, list[Any]] = {}
    for text in vary:
        key, values = parse_override(text)
        if not known_key(key):
            raise UserError(f"--vary {text}: {key}: no such key in a scenario")
        if not isinstance(values, list) or not values:
            raise UserError(f"--vary {text}: found {values!r}, expected a list of values, such as {key}=[1, 2]")
        axes[key] = values
    return [dict(zip(axes, chosen, strict=True)) for chosen in itertools.product(*axes.values())]
