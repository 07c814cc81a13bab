"""A run on disk: a folder of tables, metrics, scenario, assumptions and report, written whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import polars as pl
import yaml

from ground.assumption import Assumption
from ground.errors import UserError
from ground.folder import new_folder
from sim.results.report import write_report
from sim.results.tables import EVENTS, MEMORY, REPLICAS, REQUESTS, SESSIONS, STEPS


@dataclass
class Run:
    """What a simulated or measured run left. The tables have the columns of `sim.results.tables`, and perhaps more
    after them; `metrics` is the result of `sim.results.metrics.compute`; `scenario` is as resolved."""

    requests: pl.DataFrame
    steps: pl.DataFrame
    metrics: dict[str, Any]
    scenario: dict[str, Any]
    assumptions: list[Assumption]
    name: str = "run"
    events: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=EVENTS))
    memory: pl.DataFrame | None = None  # where the device's memory was modelled
    sessions: pl.DataFrame | None = None  # where KV blocks were kept for idle sessions
    replicas: pl.DataFrame | None = None  # of a simulated fleet
    has_events: bool = True  # else nobody wrote any down, and `events` is empty

    @property
    def quality(self) -> str | None:
        """What the pruning of its model was measured to cost, in words; null where nothing is pruned."""
        stated = (assumption.value for assumption in self.assumptions if assumption.name == "engine.pruning.quality")
        return next((str(value) for value in stated), None)


# Attribute of a run → the columns of its table, where it has one.
_OPTIONAL = {"memory": MEMORY, "sessions": SESSIONS, "replicas": REPLICAS}


def write_run(folder: Path, run: Run, *, force: bool = False) -> None:
    """Write `metrics.json`, `scenario.yaml`, `assumptions.json`, `report.html`, and each table as Parquet.

    The folder appears under its name only when all of them are complete. Equal tables give equal bytes.

    Raises:
        UserError: the folder exists and is not empty (without `force`), or cannot be written.
    """
    run = replace(run, name=folder.name)
    with new_folder(folder, force=force) as partial:
        write_table(run.requests, REQUESTS, partial / "requests.parquet")
        write_table(run.steps, STEPS, partial / "steps.parquet")
        if run.has_events:
            write_table(run.events, EVENTS, partial / "events.parquet")
        for name, columns in _OPTIONAL.items():
            if (table := getattr(run, name)) is not None:
                write_table(table, columns, partial / f"{name}.parquet")
        _write_json(run.metrics, partial / "metrics.json")
        _write_json([asdict(assumption) for assumption in run.assumptions], partial / "assumptions.json")
        text = yaml.safe_dump(run.scenario, sort_keys=False, allow_unicode=True)
        (partial / "scenario.yaml").write_text(text, encoding="utf-8")
        write_report(run, partial / "report.html")


def read_run(folder: Path) -> Run:
    """Read what `write_run` wrote (the report aside). A run that was written before there were events has none.

    Raises:
        UserError: a file is missing or unreadable, or a column is missing or of another type.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: is no folder; expected the output folder of a run")
    events = folder / "events.parquet"
    has_events = events.exists()
    return Run(
        requests=read_table(folder / "requests.parquet", REQUESTS),
        steps=read_table(folder / "steps.parquet", STEPS),
        metrics=_read_text(folder / "metrics.json", json.loads, dict),
        scenario=_read_text(folder / "scenario.yaml", yaml.safe_load, dict),
        assumptions=_read_assumptions(folder / "assumptions.json"),
        name=folder.resolve().name,
        events=read_table(events, EVENTS) if has_events else pl.DataFrame(schema=EVENTS),
        has_events=has_events,
        **{
            name: read_table(folder / f"{name}.parquet", columns)
            for name, columns in _OPTIONAL.items()
            if (folder / f"{name}.parquet").exists()
        },
    )


def write_table(table: pl.DataFrame, columns: dict[str, pl.DataType], path: Path) -> None:
    """Write `table` as Parquet: first `columns` with their types, then what else it holds.

    The bytes depend on the values alone, not on how polars has chunked them in memory.
    """
    others = [pl.col(name) for name in table.columns if name not in columns]
    ordered = table.select(*(pl.col(name).cast(kind) for name, kind in columns.items()), *others)
    ordered.rechunk().write_parquet(path, compression="zstd", row_group_size=1 << 18)


def read_table(path: Path, columns: dict[str, pl.DataType]) -> pl.DataFrame:
    """Read a Parquet table that has at least `columns`.

    Raises:
        UserError: the file is missing or is no Parquet file, or a column is missing or of another type.
    """
    if not path.is_file():
        raise UserError(f"{path}: is missing; expected a table of a run")
    try:
        table = pl.read_parquet(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise UserError(f"{path}: cannot be read as Parquet ({str(error).splitlines()[0]})") from error
    for name, kind in columns.items():
        if name not in table.columns:
            raise UserError(f"{path}: column {name!r} is missing; found {', '.join(table.columns) or 'none'}")
        if table.schema[name] != kind:
            raise UserError(f"{path}: column {name!r} has type {table.schema[name]}; expected {kind}")
    return table


def _write_json(value: object, path: Path) -> None:
    path.write_text(json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n", encoding="utf-8")


def _read_text(path: Path, parse: Callable[[str], Any], kind: type) -> Any:
    try:
        value = parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); expected a file of a run") from error
    except (ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path}: cannot be parsed ({' '.join(str(error).split())})") from error
    if not isinstance(value, kind):
        raise UserError(f"{path}: holds a {type(value).__name__}; expected a {kind.__name__}")
    return value


def _read_assumptions(path: Path) -> list[Assumption]:
    expected = {field.name for field in fields(Assumption)}
    assumptions = []
    for row, entry in enumerate(_read_text(path, json.loads, list)):
        if not isinstance(entry, dict) or entry.keys() != expected:
            raise UserError(f"{path}: entry {row} is {entry!r}; expected the keys {', '.join(sorted(expected))}")
        assumptions.append(Assumption(**entry))
    return assumptions
