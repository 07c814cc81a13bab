"""Forecasters against what came: a rolling origin, from which only the past is seen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from ground.errors import UserError
from ground.whole_file import whole_file
from sim.fleet.forecasters import FORECASTERS
from sim.fleet.forecasters.forecaster import LEVELS, Floats, ForecasterSetting

# One row: what was predicted from `origin`, the interval that begins then and is not known, for `origin + ahead − 1`.
COLUMNS: dict[str, pl.DataType] = {
    "forecaster": pl.String(),
    "origin": pl.Int64(),
    "ahead": pl.Int64(),
    "interval": pl.Int64(),
    "load": pl.Float64(),
    "mean": pl.Float64(),
    **{f"q{level:g}": pl.Float64() for level in LEVELS},
}
_FEWEST = 2  # origins, below which there is nothing to compare


@dataclass(frozen=True)
class Plan:
    """From interval `first` on, `horizon` intervals are predicted at a time, each once.

    The origins are cut into as many runs as there are `fits`; each run's forecaster has learnt from all that came
    before the run's first origin.
    """

    intervals: int
    first: int
    horizon: int
    fits: int

    @property
    def origins(self) -> range:
        return range(self.first, self.intervals - self.horizon + 1, self.horizon)

    def run(self, number: int) -> range:
        """The origins of that run, 0 … fits − 1."""
        origins, count = self.origins, len(self.origins)
        return origins[number * count // self.fits : (number + 1) * count // self.fits]


def plan_backtest(intervals: int, horizon: int, *, history: float, fits: int) -> Plan:
    """A plan whose first history is the share `history` of all intervals.

    Raises:
        UserError: too few intervals are left to predict.
    """
    plan = Plan(intervals, int(intervals * history), horizon, fits)
    if len(plan.origins) < max(_FEWEST, fits):
        raise UserError(
            f"found {intervals} intervals, of which {max(intervals - plan.first, 0)} are to be predicted, {horizon} at "
            f"a time; expected {max(_FEWEST, fits)} times or more: a longer trace, shorter intervals or fewer fits"
        )
    return plan


def run_fold(
    name: str,
    load: Floats,
    plan: Plan,
    number: int,
    *,
    season: int | None,
    seed: int,
    on_origin: Callable[[], None] = lambda: None,
) -> pl.DataFrame:
    """The predictions of the forecaster `name` over one run of `plan`, with `COLUMNS`.

    What comes from an origin on is not given to the forecaster that predicts from there.

    Raises:
        UserError: the history is too short for the forecaster, or lacks what it needs.
    """
    forecaster = FORECASTERS[name](ForecasterSetting(plan.horizon, season, LEVELS, seed))
    origins = plan.run(number)
    forecaster.fit(load[: origins[0]].copy())
    means, quantiles = [], []
    for origin in origins:
        forecast = forecaster.predict(load[:origin].copy(), plan.horizon)
        means.append(forecast.mean)
        quantiles.append(forecast.quantiles)
        on_origin()
    from_origin = np.repeat(np.array(origins), plan.horizon)
    ahead = np.tile(np.arange(1, plan.horizon + 1), len(origins))
    levels = np.concatenate(quantiles, axis=1)
    return pl.DataFrame(
        {
            "forecaster": [name] * len(from_origin),
            "origin": from_origin,
            "ahead": ahead,
            "interval": from_origin + ahead - 1,
            "load": load[from_origin + ahead - 1],
            "mean": np.concatenate(means),
            **{f"q{level:g}": levels[place] for place, level in enumerate(LEVELS)},
        },
        schema=COLUMNS,
    )


def backtest(
    names: list[str],
    load: Floats,
    plan: Plan,
    folder: Path,
    *,
    season: int | None,
    seed: int,
    skip: bool,
    on_fold: Callable[[str, int], None] = lambda name, number: None,
    on_origin: Callable[[int], None] = lambda count: None,
) -> tuple[pl.DataFrame, dict[str, str]]:
    """(all predictions, in the order of `names`; forecaster → why it could not predict).

    Every finished run of a forecaster is a file in `folder`/folds; interrupted, the same call does only the others.
    With `skip` a forecaster that refuses is left out, otherwise its refusal is raised. `on_fold` is told what begins,
    `on_origin` how many origins were done, or found done.

    Raises:
        UserError: see `run_fold`; or none of the forecasters can predict.
    """
    folds = folder / "folds"
    folds.mkdir(exist_ok=True)
    tables: list[pl.DataFrame] = []
    left_out: dict[str, str] = {}
    for name in names:
        found: list[pl.DataFrame] = []
        try:
            for number in range(plan.fits):
                path = folds / f"{name}-{number}.parquet"
                if path.is_file():
                    found.append(pl.read_parquet(path))
                    on_origin(len(plan.run(number)))
                    continue
                on_fold(name, number)
                table = run_fold(name, load, plan, number, season=season, seed=seed, on_origin=lambda: on_origin(1))
                with whole_file(path) as partial:
                    table.write_parquet(partial)
                found.append(table)
        except UserError as error:
            if not skip:
                raise
            left_out[name] = error.message
            on_origin(sum(len(plan.run(number)) for number in range(len(found), plan.fits)))
        else:
            tables += found
    if not tables:
        raise UserError(f"no forecaster can predict this load; {'; '.join(left_out.values())}")
    return pl.concat(tables), left_out
