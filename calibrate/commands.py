"""`simctl calibrate`: measure a device, show a profile, list what is bundled."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import click

from calibrate.model import load_model
from ground.errors import UserError

if TYPE_CHECKING:
    from calibrate.profile import Profile


@click.group()
def calibrate() -> None:
    """Measure what a device can do, or show what was measured."""


@calibrate.command()
@click.option("--device", type=click.Choice(["cpu", "cuda"]), required=True, help="Where the kernels run.")
@click.option("--model", metavar="MODEL", help="A Hugging Face config.json, or a bundled name.")
@click.option(
    "--collectives",
    is_flag=True,
    help="Time what ranks exchange instead of a model's kernels, into the profile OUT or a new one.",
)
@click.option(
    "--ranks", default="2,4", show_default=True, metavar="N,N", help="With --collectives: between how many ranks."
)
@click.option("--tp", type=click.IntRange(1), default=1, show_default=True, help="Time one rank's share of the model.")
@click.option(
    "--threads", type=click.IntRange(1), default=1, show_default=True, help="CPU threads; one is the steadiest."
)
@click.option("--block-size", type=click.IntRange(1), default=16, show_default=True, help="Tokens in a KV block.")
@click.option("--quick", is_flag=True, help="A coarse grid of a few seconds, not for predictions.")
@click.option("--pruning", is_flag=True, help="Also time what only a pruned model runs, on a CPU.")
@click.option("--force", is_flag=True, help="Replace the profile that is there.")
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="Folder of the profile.")
def run(
    device: str,
    model: str | None,
    collectives: bool,
    ranks: str,
    tp: int,
    threads: int,
    block_size: int,
    quick: bool,
    pruning: bool,
    force: bool,
    out: Path,
) -> None:
    """Time a model's real kernels on this machine and write a profile.

    A run that was stopped goes on where it was when the same command is given again. With --collectives it times
    all-reduce, all-gather, reduce-scatter, all-to-all and send/receive: between processes on a CPU (gloo), or GPUs
    (NCCL).
    """
    if collectives == (model is not None):
        found = "both --model and --collectives" if collectives else "neither --model nor --collectives"
        raise UserError(f"calibrate run: {found}; expected one of them")
    if pruning and (collectives or device != "cpu"):
        raise UserError("calibrate run: --pruning times what a CPU runs of a model; expected --device cpu and --model")
    shape = load_model(model) if model is not None else None
    if importlib.util.find_spec("torch") is None:
        raise UserError("calibrate run needs torch, which is not installed; expected: pip install 'simctl[torch]'")
    try:
        if shape is None:
            profile = _run_collectives(device, ranks, quick, force, out.absolute())
        else:
            from calibrate.microbench.grid import cpu_grid, cuda_grid, quick_grid
            from calibrate.microbench.measure import measure

            grid = quick_grid() if quick else cuda_grid() if device == "cuda" else cpu_grid()
            profile = measure(
                shape,
                device=device,
                tp=tp,
                threads=threads,
                grid=replace(grid, pruning=pruning),
                block_size=block_size,
                out=out.absolute(),
                force=force,
            )
    except KeyboardInterrupt:
        raise UserError(f"{out}: stopped; the finished points are kept, the same command goes on with them") from None
    _print(profile)
    click.echo(f"Profile written to {out}")


def _run_collectives(device: str, ranks: str, quick: bool, force: bool, out: Path) -> Profile:
    from calibrate.microbench.collectives import collective_grid, measure_collectives

    counts = [int(part) if part.strip().isdecimal() else 0 for part in ranks.split(",")]
    if any(count < 2 for count in counts) or sorted(set(counts)) != counts:
        raise UserError(f"--ranks {ranks}: expected rising numbers from 2 on, such as 2,4")
    return measure_collectives(device, collective_grid(device, counts, quick=quick), out, force=force)


@calibrate.command("import")
@click.argument("format", metavar="FORMAT")
@click.argument("source", metavar="SRC")
@click.option("--model", metavar="MODEL", help="A Hugging Face config.json, or a bundled name; where SRC names none.")
@click.option("--tp", type=click.IntRange(1), help="Tensor parallelism, where SRC has several.")
@click.option("--force", is_flag=True, help="Replace the profile that is there.")
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="Folder of the profile.")
def import_(format: str, source: str, model: str | None, tp: int | None, force: bool, out: Path) -> None:
    """Read somebody else's kernel measurements into a profile. FORMAT is one that `calibrate list` shows."""
    from calibrate.importers import importers
    from ground.folder import refuse_existing

    known = importers()
    if format not in known:
        raise UserError(f"{format}: no such format; expected one of {', '.join(known)}")
    refuse_existing(out, force=force)
    profile = known[format].read(source, load_model(model) if model else None, tp)
    profile.save(out, force=force)
    _print(profile)
    click.echo(f"Profile written to {out}")


@calibrate.command()
@click.argument("profile")
@click.option("--picture", type=click.Path(path_type=Path), help="Also write the roofline picture, an HTML page.")
def show(profile: str, picture: Path | None) -> None:
    """Print a profile's tables in brief, and how well it predicts. PROFILE is a folder or a bundled name."""
    from calibrate.profile import Profile

    loaded = Profile.load(profile)
    _print(loaded)
    if picture is not None:
        from calibrate.picture import write_picture

        try:
            write_picture(loaded, picture)
        except OSError as error:
            raise UserError(f"{picture}: cannot be written ({error.strerror})") from error
        click.echo(f"Picture written to {picture}")


@calibrate.command("list")
def list_() -> None:
    """List the bundled models, profiles, datasheets and collectives, and the formats that can be imported."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from calibrate.datasheet import devices
    from calibrate.importers import importers
    from calibrate.links import bundled_collectives
    from calibrate.model import bundled_models
    from calibrate.profile import Profile, bundled_profiles

    console = Console()
    models = Table("model", "parameters", "KV bytes a token", title="Bundled models", title_justify="left")
    for name in bundled_models():
        shape = load_model(name)
        parameters = shape.weight_bytes() / shape.dtype_bytes
        models.add_row(name, f"{parameters / 1e9:.3g} billion", f"{shape.kv_bytes_per_token():,}")
    console.print(models)
    if bundled_profiles():
        profiles = Table("profile", "device", "model", "tp", "covers", title="Bundled profiles", title_justify="left")
        for name in bundled_profiles():
            profile = Profile.load(name)
            model_name = profile.model.name if profile.model else "any"
            profiles.add_row(name, profile.device, model_name, str(profile.tp), ", ".join(profile.tables))
        console.print(profiles)
    sheets = Table(
        "name",
        "TFLOP/s (bf16)",
        "GB/s",
        "GiB",
        "W",
        title="Datasheets: an upper bound on speed for any dense model, nothing measured",
        title_justify="left",
    )
    for device in devices().values():
        sheets.add_row(
            f"datasheet:{device.name}",
            f"{device.flops / 1e12:.1f}",
            f"{device.bandwidth / 1e9:.0f}",
            f"{device.memory / 2**30:.1f}",
            f"{device.tdp:.0f}",
        )
    console.print(sheets)
    links = Table(
        "device", "operation", "GPUs", "from", title="Collectives between GPUs of one node", title_justify="left"
    )
    for row in bundled_collectives():
        links.add_row(*row)
    console.print(links)
    formats = Table("format", "SRC", title="Formats of `simctl calibrate import`", title_justify="left")
    for importer in importers().values():
        formats.add_row(importer.name, escape(importer.summary))
    console.print(formats)


def _print(profile: Profile) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    threads = f", {profile.threads} thread{'s' if profile.threads != 1 else ''}" if profile.threads else ""
    model_name = profile.model.name if profile.model else "of no model"
    on = f"tp {profile.tp}, {profile.dtype} on {profile.device}{threads}"
    console.print(f"[bold]{escape(model_name)}[/bold], {escape(on)}")
    facts = (profile.provenance.note, profile.provenance.licence, profile.date)
    console.print(escape(", ".join(fact for fact in facts if fact)), style="dim", highlight=False)

    table = Table("class", "what", "points", "fastest", "slowest", "spread")
    for kernel_class, rows in profile.tables.items():
        what = next((key for key in ("layer", "operation") if key in rows.columns), None)
        series = rows[what].to_list() if what else [""] * len(rows)
        for name in dict.fromkeys(series):
            part = rows.filter(rows[what] == name) if what else rows
            spread = "–"
            if "p90" in part.columns and kernel_class != "overhead":
                spread = f"{median((part['p90'] - part['p10']) / part['seconds']):.0%}"
            seconds = part["seconds"].to_list()
            table.add_row(kernel_class, name, str(len(part)), _micro(min(seconds)), _micro(max(seconds)), spread)
    console.print(table)

    if profile.errors:
        errors = Table("class", "fit", "held-out points", "median error", "90th percentile")
        for kernel_class, error in profile.errors.items():
            shown = _SHOWN_CLASSES.get(kernel_class, kernel_class)
            held_out = f"{error['held_out_points']:.0f}" if "held_out_points" in error else "–"
            columns = [_percent(error.get(key)) for key in ("fit", "held_out_median", "held_out_p90")]
            errors.add_row(shown, columns[0], held_out, *columns[1:])
        console.print(errors)
        console.print("fit: a grid point from its neighbours; spread: (p90 - p10) / median", style="dim")


# How the classes of `Profile.errors` that are no kernel class are called.
_SHOWN_CLASSES = {
    "step": "whole steps",
    "skew.mean_context": "unequal contexts, by their mean",
    "skew.neighbours": "unequal contexts, by neighbours",
    "skew.waves": "unequal contexts, by waves",
}


def _micro(seconds: float) -> str:
    return f"{seconds * 1e6:,.1f} µs"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.1%}"
