"""`simctl trace`: read, describe, convert and synthesise request traces."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from ground.errors import UserError
from traces import scaling
from traces.dequantise import dequantise as spread_arrivals
from traces.describe import CAPACITIES, arrival_times, describe
from traces.loading import formats, read, read_as_recorded
from traces.picture import draw, rate_over_time
from traces.synth import generate, load_spec
from traces.synth.arrivals_text import parse_arrivals
from traces.table import Trace
from traces.writing import Layout, write

_BARS = "▁▂▃▄▅▆▇█"

_format = click.option("--format", "-f", help="Format of FILE; without it the file is sniffed.")
_map = click.option(
    "--map", "-m", "column_map", multiple=True, metavar="COLUMN=SOURCE", help="Map a column; means format generic."
)
_unsorted = click.option("--allow-unsorted", is_flag=True, help="With --map: sort rows that are not in time order.")
_seed = click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0), help="Seed of all draws.")


@click.group()
def trace() -> None:
    """Read, describe, convert and synthesise request traces."""


@trace.command("formats")
def list_formats() -> None:
    """List the formats that can be read."""
    table = Table("format", "what it is", box=None)
    for name, summary in formats().items():
        # Cells are text, not markup: the summaries use brackets for units.
        table.add_row(name, summary.replace("[", r"\["))
    Console().print(table)


@trace.command()
@click.argument("file", type=click.Path(path_type=Path))
@_format
@_map
@_unsorted
@click.option("--picture", type=click.Path(path_type=Path), help="Also draw the trace as an HTML page.")
@click.option("--json", "as_json", is_flag=True, help="Print the numbers as JSON instead of tables.")
def info(
    file: Path,
    format: str | None,
    column_map: tuple[str, ...],
    allow_unsorted: bool,
    picture: Path | None,
    as_json: bool,
) -> None:
    """Show rates, burstiness, token percentiles and prefix reuse of FILE."""
    loaded = read_as_recorded(file, format, _parse_map(column_map), allow_unsorted=allow_unsorted)
    description = describe(loaded)
    if as_json:
        click.echo(json.dumps(description, indent=2, allow_nan=False))
    else:
        _print(loaded, description)
    if picture is not None:
        draw(loaded, description, picture)
        click.echo(f"Drew {picture}", err=as_json)


@trace.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@_format
@_map
@_unsorted
@click.option(
    "--session-arrivals",
    metavar="PROCESS:RATE",
    help="Start the sessions of a source without a common clock, such as poisson:0.05 or gamma:0.05,cv=2 (per second).",
)
@click.option("--dequantise", is_flag=True, help="Spread arrivals that share a coarse time stamp.")
@click.option("--first-seconds", type=float, help="Keep what arrives in the first so many seconds.")
@click.option("--first-requests", type=int, help="Keep the first so many requests.")
@click.option("--stretch", type=float, help="Multiply arrivals: 2 takes twice as long, at half the rate.")
@click.option("--thin", type=float, help="Keep each session or single request with this probability.")
@click.option("--copies", type=int, help="Superpose so many copies, turned around the clock at random.")
@click.option("--to", "layout", type=click.Choice(["canonical", "mooncake"]), default="canonical", show_default=True)
@_seed
def convert(
    file: Path,
    out: Path,
    format: str | None,
    column_map: tuple[str, ...],
    allow_unsorted: bool,
    session_arrivals: str | None,
    dequantise: bool,
    first_seconds: float | None,
    first_requests: int | None,
    stretch: float | None,
    thin: float | None,
    copies: int | None,
    layout: Layout,
    seed: int,
) -> None:
    """Read FILE, cut and scale it, write OUT (.parquet, .csv or .jsonl).

    Steps are taken in the order of the options above: session arrivals, dequantise, first, stretch, thin, copies.
    """
    process = None if session_arrivals is None else parse_arrivals(session_arrivals, "--session-arrivals")
    result = read(
        file, format, _parse_map(column_map), allow_unsorted=allow_unsorted, session_arrivals=process, seed=seed
    )
    if dequantise:
        result = spread_arrivals(result, seed)
    if first_seconds is not None or first_requests is not None:
        result = scaling.first(result, seconds=first_seconds, requests=first_requests)
    if stretch is not None:
        result = scaling.time_stretch(result, stretch)
    if thin is not None:
        result = scaling.thin(result, thin, seed)
    if copies is not None:
        result = scaling.superpose(result, copies, seed)
    _write(result, out, layout)


@trace.command()
@click.argument("spec", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@_seed
def synth(spec: Path, out: Path, seed: int) -> None:
    """Draw a synthetic trace from the YAML file SPEC, write OUT (.parquet, .csv or .jsonl)."""
    _write(generate(load_spec(spec), seed, base_dir=spec.parent), out, "canonical")


def _write(result: Trace, out: Path, layout: Layout) -> None:
    write(result, out, layout)
    dropped = "".join(f", {count:,} dropped: {why}" for why, count in result.dropped.items())
    click.echo(f"Wrote {out}: {len(result.requests):,} requests of {result.rows_read:,} rows{dropped}")


def _parse_map(pairs: tuple[str, ...]) -> dict[str, str | int] | None:
    columns: dict[str, str | int] = {}
    for pair in pairs:
        target, equals, source = pair.partition("=")
        if not (target and equals and source):
            raise UserError(f"--map: found {pair!r}, expected COLUMN=SOURCE such as arrival_ms=timestamp")
        if target in columns:
            raise UserError(f"--map: {target!r} is given twice")
        columns[target] = int(source) if source.isdecimal() else source
    return columns or None


def _print(loaded: Trace, description: dict[str, Any]) -> None:
    console = Console()
    arrivals, tokens, reuse = (description[key] for key in ("arrivals", "tokens", "prefix_reuse"))
    dropped = ", ".join(f"{count:,} {why}" for why, count in loaded.dropped.items()) or "none"
    facts = Table(box=None, show_header=False)
    for name, value in (
        ("format", loaded.format),
        ("requests", f"{description['requests']:,} of {loaded.rows_read:,} rows; dropped: {dropped}"),
        *_arrival_facts(arrivals),
        ("sessions", _sessions(description)),
        ("closed loop", _closed_loop(description)),
        ("notes", ", ".join(loaded.notes) or None),
    ):
        if value is not None:
            facts.add_row(name, value.replace("[", r"\["))
    console.print(facts)
    if arrivals is not None:
        _, rate = rate_over_time(arrival_times(loaded), 60)
        console.print(f"\nrate  {sparkline(rate.tolist())}  0 … {max(rate):.2f} /s", highlight=False)

    lengths = Table("tokens", *("mean", "p50", "p90", "p99", "max"), box=None)
    for name in ("prompt", "output"):
        lengths.add_row(name, *(f"{value:,.0f}" for value in tokens[name].values()))
    console.print()
    console.print(lengths)
    if reuse is not None and reuse["lru_blocks"] is not None:
        caches = Table("prefix cache", *(f"{capacity:,}" for capacity in CAPACITIES), "no limit", box=None)
        shares = [*reuse["lru_blocks"].values(), reuse["blocks"]]
        caches.add_row("prompt blocks found", *(f"{share:.1%}" for share in shares))
        console.print()
        console.print(caches)
    if reuse is not None:
        sizes = ", ".join(map(str, reuse["block_tokens"]))
        console.print(f"\nblocks of {sizes} tokens; {reuse['tokens']:.1%} of prompt tokens were seen before")
        if reuse["lru_blocks"] is not None and description["closed_loop_requests"]:
            console.print("a cache with a limit sees closed loop sessions one after the other here, not interleaved")


def _arrival_facts(arrivals: dict[str, Any] | None) -> list[tuple[str, str]]:
    if arrivals is None:
        return [("clock", "one a session: when sessions begin is not said (convert with --session-arrivals)")]
    return [
        ("span", f"{arrivals['span_seconds']:,.1f} s"),
        ("rate", f"{_show(arrivals['rate_mean'])} /s mean, {_peaks(arrivals)}"),
        ("burstiness", f"gap CV {_show(arrivals['gap_cv'])}, IoD {_iods(arrivals)} (Poisson: 1)"),
    ]


def _sessions(description: dict[str, Any]) -> str | None:
    turns = description["turns"]
    if turns is None:
        return None
    return f"{description['sessions']:,}; turns p50 {turns['p50']:g}, p90 {turns['p90']:.0f}, max {turns['max']:.0f}"


def _closed_loop(description: dict[str, Any]) -> str | None:
    think = description["think_time"]
    if not description["closed_loop_requests"]:
        return None
    said = "" if think is None else f"; think time p50 {think['p50']:g} s, p90 {think['p90']:g} s"
    return f"{description['closed_loop_requests']:,} turns{said}"


def sparkline(values: list[float]) -> str:
    """One character a value; the largest fills its cell, and only 0 is blank."""
    top = max(values)
    if not top:
        return " " * len(values)
    return "".join(_BARS[round(value / top * (len(_BARS) - 1))] if value else " " for value in values)


def _peaks(arrivals: dict[str, Any]) -> str:
    return f"peak {_show(arrivals['rate_peak_1s'])} over 1 s, {_show(arrivals['rate_peak_60s'])} over 60 s"


def _iods(arrivals: dict[str, Any]) -> str:
    return f"{_show(arrivals['iod_1s'])} over 1 s, {_show(arrivals['iod_60s'])} over 60 s"


def _show(value: float | None) -> str:
    return "–" if value is None else f"{value:,.2f}"
