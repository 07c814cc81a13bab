"""The command `simctl forecast`: forecasters of load, tried on a trace."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import yaml

from ground.errors import UserError

if TYPE_CHECKING:
    import polars as pl

    from sim.study.backtest import Plan
    from sim.study.load_series import LoadSeries

# What only the work itself needs is imported there: a command should begin at once.


@click.command()
@click.argument("trace", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Folder to write, or to go on in.")
@click.option("--format", "-f", help="Format of TRACE; without it the file is sniffed.")
@click.option(
    "--load", "of", default="requests", show_default=True, help="requests, prompt_tokens, output_tokens or tokens."
)
@click.option(
    "--interval", default=60.0, show_default=True, type=click.FloatRange(min=0, min_open=True), help="Seconds."
)
@click.option("--horizon", default=5, show_default=True, type=click.IntRange(min=1), help="Intervals to predict.")
@click.option("--season", type=click.FloatRange(min=0, min_open=True), help="Seconds; found in the load if not given.")
@click.option(
    "--forecaster",
    "names",
    multiple=True,
    metavar="NAME",
    help="naive, seasonal_naive, holt_winters, arima, kalman, lstm; default: each that can predict this load.",
)
@click.option(
    "--history",
    default=0.5,
    show_default=True,
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Share of the trace that is learnt from before the first prediction.",
)
@click.option("--fits", default=3, show_default=True, type=click.IntRange(min=1), help="How often to learn anew.")
@click.option(
    "--capacity",
    type=click.FloatRange(min=0, min_open=True),
    help="Load that one replica serves, per second; says what too many and too few replicas cost.",
)
@click.option("--gpus", default=1, show_default=True, type=click.IntRange(min=1), help="GPUs of a replica.")
@click.option("--save-model", is_flag=True, help="Train the LSTM on the whole load and write it: model.safetensors.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0), help="Seed of all draws.")
def forecast(
    trace: Path, output: Path, format: str | None, of: str, interval: float, horizon: int, season: float | None,
    names: tuple[str, ...], history: float, fits: int, capacity: float | None, gpus: int, save_model: bool, seed: int,
) -> None:  # fmt: skip
    """Predict the load of TRACE with each forecaster, from origin after origin, and compare with what came.

    Writes backtest.parquet, forecast.json and report.html. The same command goes on where it was interrupted.
    """
    from ground.folder import open_folder
    from ground.progress import progress_bar
    from sim.fleet.forecasters import FORECASTERS
    from sim.fleet.forecasters.history import find_season
    from sim.study.backtest import backtest, plan_backtest
    from sim.study.load_series import LOADS, load_series
    from traces.loading import read

    for name in names:
        if name not in FORECASTERS:
            raise UserError(f"--forecaster: found {name!r}, expected one of {', '.join(FORECASTERS)}")
    if of not in LOADS:
        raise UserError(f"--load: found {of!r}, expected one of {', '.join(LOADS)}")
    series = load_series(read(trace, format), interval, of)
    plan = plan_backtest(len(series.load), horizon, history=history, fits=fits)
    period = _period(season, interval) or find_season(series.load[: plan.first])
    chosen = list(dict.fromkeys(names or FORECASTERS))
    options: dict[str, Any] = {
        "trace": str(trace), "load": of, "unit": series.unit, "interval": interval, "horizon": horizon,
        "season": period * interval if period else None, "intervals": len(series.load), "first_origin": plan.first,
        "fits": fits, "seed": seed, "without_arrival": series.left_out,
    }  # fmt: skip
    open_folder(output, "backtest.yaml", yaml.safe_dump({**options, "sum": float(series.load.sum())}, sort_keys=False))
    try:
        with progress_bar() as bar:
            task = bar.add_task("origins", total=len(chosen) * len(plan.origins), note="")
            predictions, left_out = backtest(
                chosen, series.load, plan, output, season=period, seed=seed, skip=not names,
                on_fold=lambda name, number: bar.update(task, note=f"{name} learns, {number + 1} of {fits}"),
                on_origin=lambda count: bar.update(task, advance=count, note=""),
            )  # fmt: skip
        if save_model:
            _save_model(series, plan, period, seed, options, output)
    except KeyboardInterrupt:
        click.echo("interrupted: what was predicted is kept; the same command goes on", err=True)
        raise SystemExit(130) from None
    _write(series, plan, predictions, {**options, "capacity": capacity, "gpus": gpus, "left_out": left_out}, output)


def _period(season: float | None, interval: float) -> int | None:
    if season is None:
        return None
    period = round(season / interval)
    if period < 2 or abs(period * interval - season) > 1e-6 * season:
        raise UserError(f"--season: found {season:g} s, expected two or more whole intervals of {interval:g} s")
    return period


def _save_model(
    series: LoadSeries, plan: Plan, period: int | None, seed: int, options: dict[str, Any], output: Path
) -> None:
    from sim.fleet.forecasters.forecaster import ForecasterSetting
    from sim.fleet.forecasters.lstm import Lstm
    from sim.fleet.forecasters.lstm_file import WEIGHTS, save

    if not (output / WEIGHTS).is_file():
        forecaster = Lstm(ForecasterSetting(plan.horizon, period, seed=seed))
        forecaster.fit(series.load)
        save(forecaster, output, {key: options[key] for key in ("trace", "load", "unit", "interval")})


def _write(series: LoadSeries, plan: Plan, predictions: pl.DataFrame, result: dict[str, Any], output: Path) -> None:
    from ground.whole_file import whole_file
    from sim.study.backtest_report import write_backtest_report
    from sim.study.forecast_errors import judged, references

    interval, capacity, gpus = series.interval, result["capacity"], result["gpus"]
    by_name = {name: part for (name,), part in predictions.partition_by("forecaster", as_dict=True).items()}
    result["forecasters"] = {name: judged(part, interval, capacity, gpus) for name, part in by_name.items()}
    if capacity is not None:
        one = next(iter(by_name.values()))
        result["references"] = references(series.load[: plan.first], one, interval, capacity, gpus)
    with whole_file(output / "backtest.parquet") as partial:
        predictions.write_parquet(partial)
    with whole_file(output / "forecast.json") as partial:
        partial.write_text(json.dumps(result, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    with whole_file(output / "report.html") as partial:
        write_backtest_report(series.load, predictions, result, partial)
    _print(result)
    click.echo(str(output / "report.html"))


def _print(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    from sim.results.display import digits, share

    costs = result["capacity"] is not None
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("forecaster", no_wrap=True)
    columns = ["MAPE", "weighted", *(f"pinball\n{level}" for level in ("0.1", "0.5", "0.9"))]
    for column in (*columns, "GPU-hours\nwasted", "time\nshort") if costs else columns:
        table.add_column(column, justify="right", no_wrap=True)
    for name, each in result["forecasters"].items():
        cost = each["provisioning"]["0.9"] if costs else None
        table.add_row(
            name, share(each["mape"]), share(each["wape"]), *(digits(value) for value in each["pinball"].values()),
            *((digits(cost["wasted"]), share(cost["short"])) if cost else ()),
        )  # fmt: skip
    Console().print(table)
    for name, why in result["left_out"].items():
        click.echo(f"left out: {name}: {why}")
