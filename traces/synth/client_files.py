"""ServeGen's client data: how often each client of a service sends, and how long its requests are, window by window.

Two forms: the two tables client_windows.parquet and field_pmf.parquet, or upstream's folders, with
chunk-CLIENT-trace.csv (no header) and chunk-CLIENT-dataset.json a client under CATEGORY/MODEL.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ground.errors import UserError
from traces.readers.raw import json_document
from traces.synth.pmf import Pmf, WindowedPmf, parse_pmf

WINDOWS, PMFS = "client_windows.parquet", "field_pmf.parquet"
GAMMA, WEIBULL = "Gamma", "Weibull"
_COLUMNS = ("window_start_s", "rate_rps", "iat_cv", "arrival_dist", "shape", "scale")
_WINDOW_SECONDS = 600.0  # ServeGen's, where a client has one window and so no distance between two


@dataclass(frozen=True)
class Client:
    """One client. The arrays have one entry a window in which it sends, by start."""

    name: str
    starts: NDArray[np.float64]  # seconds on the recording's clock
    counts: NDArray[np.float64]  # requests in the window
    weibull: NDArray[np.bool_]  # gaps are Weibull, else Gamma
    shapes: NDArray[np.float64]
    window: float  # seconds
    span: float  # where its last window, idle or not, ends
    lengths: dict[str, WindowedPmf] = field(default_factory=dict)  # by field; without a key nothing is recorded


def read_clients(folder: Path, category: str, model: str, fields: Collection[str]) -> list[Client]:
    """All clients of one model, by number, with the histograms of `fields`.

    Raises:
        UserError: the folder holds neither form or not that model, or a file, row or key does not fit.
    """
    if (folder / WINDOWS).exists():
        return _read_tables(folder, category, model, fields)
    upstream = folder / category / model
    if upstream.is_dir():
        return _read_upstream(upstream, fields)
    raise UserError(f"{folder}: expected {WINDOWS} and {PMFS}, or chunk-*-trace.csv in {category}/{model}")


def _read_tables(folder: Path, category: str, model: str, fields: Collection[str]) -> list[Client]:
    mine = (pl.col("category").cast(pl.String) == category) & (pl.col("model").cast(pl.String) == model)
    try:
        scan = pl.scan_parquet(folder / WINDOWS)
        windows = scan.filter(mine).select("client_id", *_COLUMNS).collect()
        if windows.is_empty():
            known = (
                scan.select(pl.col("category", "model").cast(pl.String)).unique().sort("category", "model").collect()
            )
            names = ", ".join(f"{kind}/{name}" for kind, name in known.iter_rows())
            raise UserError(f"{folder / WINDOWS}: found no {category}/{model}, expected one of {names}")
        wanted = mine & pl.col("field").cast(pl.String).is_in(list(fields)) & pl.col("value").is_not_null()
        pmfs = (
            pl.scan_parquet(folder / PMFS)
            .filter(wanted)
            .select("client_id", "window_start_s", pl.col("field").cast(pl.String), "value", "prob")
            .collect()
        )
    except (pl.exceptions.PolarsError, OSError) as error:
        raise UserError(f"{folder}: {str(error).splitlines()[0]}") from error
    lengths: dict[tuple[int, str], list[tuple[float, Pmf]]] = {}
    for (client, start, name), rows in pmfs.group_by("client_id", "window_start_s", "field"):
        where = f"{folder / PMFS}: client {client}, window {start}, {name}"
        lengths.setdefault((int(client), str(name)), []).append(
            (float(start), _pmf(where, rows["value"].to_numpy(), rows["prob"].to_numpy()))
        )
    clients = []
    for (number,), rows in windows.group_by("client_id", maintain_order=True):
        found = {name: _windowed(lengths[key]) for name in fields if (key := (int(number), name)) in lengths}
        clients.append(_client(f"{folder / WINDOWS}: client {number}", str(number), rows, found))
    return sorted(clients, key=lambda client: int(client.name))


def _read_upstream(folder: Path, fields: Collection[str]) -> list[Client]:
    traces = {
        match[1]: path for path in folder.iterdir() if (match := re.fullmatch(r"chunk-(\d+)-trace\.csv", path.name))
    }
    if not traces:
        raise UserError(f"{folder}: found no chunk-*-trace.csv")
    clients = []
    for number in sorted(traces, key=int):
        path = traces[number]
        try:
            rows = pl.read_csv(path, has_header=False, new_columns=list(_COLUMNS), infer_schema=False)
        except (pl.exceptions.PolarsError, OSError) as error:
            raise UserError(f"{path}: not a CSV table ({str(error).splitlines()[0]})") from error
        if len(rows.columns) != len(_COLUMNS):
            raise UserError(f"{path}: found {len(rows.columns)} columns, expected {', '.join(_COLUMNS)}")
        numbers = pl.col("window_start_s", "rate_rps", "iat_cv", "shape", "scale").cast(pl.Float64, strict=False)
        dataset = folder / f"chunk-{number}-dataset.json"
        lengths = _dataset(dataset, fields) if dataset.exists() else {}
        clients.append(_client(str(path), number, rows.with_columns(numbers), lengths))
    return clients


def _dataset(path: Path, fields: Collection[str]) -> dict[str, WindowedPmf]:
    found: dict[str, list[tuple[float, Pmf]]] = {}
    for start, window in json_document(path).items():
        for name in fields:
            text = window.get(name) if isinstance(window, dict) else None
            if text is None:
                continue
            try:
                pmf = parse_pmf(text)
                if pmf is not None:
                    found.setdefault(name, []).append((float(start), pmf))
            except (ValueError, AttributeError) as error:
                raise UserError(f"{path}: window {start!r}, {name}: {error}") from error
    return {name: _windowed(windows) for name, windows in found.items()}


def _client(where: str, name: str, rows: pl.DataFrame, lengths: dict[str, WindowedPmf]) -> Client:
    rows = rows.sort("window_start_s")
    for column in ("window_start_s", "rate_rps"):
        bad = rows[column].is_null() | ~rows[column].cast(pl.Float64).is_finite() | (rows[column] < 0)
        if bad.any():
            raise UserError(f"{where}: {column}: found {rows[column][bad.arg_true()[0]]}, expected at least 0")
    starts = rows["window_start_s"].cast(pl.Float64).to_numpy()
    steps = np.diff(starts)
    if len(steps) and not steps.min() > 0:
        raise UserError(f"{where}: two windows begin at {starts[:-1][steps <= 0][0]:g} s")
    window = float(steps.min()) if len(steps) else _WINDOW_SECONDS
    active = rows.filter(pl.col("rate_rps") > 0)
    known = active["arrival_dist"].is_in([GAMMA, WEIBULL]) & (active["shape"] > 0) & active["shape"].is_finite()
    unknown = (~known.fill_null(False)).arg_true()
    if len(unknown):
        row = active.row(int(unknown[0]), named=True)
        raise UserError(
            f"{where}, window {row['window_start_s']:g}: found {row['arrival_dist']} with shape {row['shape']}, "
            f"expected {GAMMA} or {WEIBULL} with a shape above 0"
        )
    return Client(
        name,
        active["window_start_s"].cast(pl.Float64).to_numpy(),
        active["rate_rps"].to_numpy() * window,
        (active["arrival_dist"] == WEIBULL).to_numpy(),
        active["shape"].to_numpy(),
        window,
        float(starts[-1]) + window,
        lengths,
    )


def _pmf(where: str, values: NDArray[np.float64], probabilities: NDArray[np.float64]) -> Pmf:
    try:
        return Pmf.of(values, probabilities)
    except ValueError as error:
        raise UserError(f"{where}: {error}") from error


def _windowed(windows: list[tuple[float, Pmf]]) -> WindowedPmf:
    windows.sort(key=lambda each: each[0])
    return WindowedPmf(np.array([start for start, _ in windows]), tuple(pmf for _, pmf in windows))
