"""The command `simctl search`."""

from __future__ import annotations

from pathlib import Path

import click

from sim.workers_options import workers_of, workers_options

# What only the work itself needs is imported there: a command should begin at once.


@click.command()
@click.argument("study", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Folder to write, or to go on in.")
@workers_options
def search(study: Path, output: Path, workers: int | None, engine: str, address: str | None) -> None:
    """Look for the best settings of STUDY's scenario; the same command goes on where it was interrupted."""
    from ground.progress import progress_bar
    from sim.study.search import explore as searches
    from sim.study.search.results import write_search
    from sim.study.search.study import load_search
    from sim.study.search.terminal import print_search

    loaded = load_search(study)
    searches.open_search_folder(loaded, output)
    total, done = searches.expected_runs(loaded), 0
    try:
        with workers_of(engine, workers, address) as processes, progress_bar() as bar:
            task = bar.add_task("runs", total=total, note="")

            def on_run(_: object) -> None:
                nonlocal done
                done += 1
                bar.update(task, completed=done, total=max(total, done))

            found = searches.search(loaded, output, workers=processes, on_run=on_run)
            bar.update(task, completed=done, total=done)
    except KeyboardInterrupt:
        click.echo(f"interrupted: {done} runs are kept; the same command goes on", err=True)
        raise SystemExit(130) from None
    write_search(found, output)
    print_search(found)
    click.echo(str(output / "report.html"))
