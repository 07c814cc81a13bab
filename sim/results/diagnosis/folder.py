"""A diagnosis on disk: numbers, requests by cause, flame graphs, timeline and page, written whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl

from ground.folder import new_folder
from sim.results.diagnosis.attribution import KEPT, cause_columns
from sim.results.diagnosis.diagnosis import Diagnosis, summary
from sim.results.diagnosis.page import write_page
from sim.results.diagnosis.speedscope import flame_graphs
from sim.results.diagnosis.timeline import timeline
from sim.results.folder import Run, write_table
from sim.results.tables import REQUESTS


def write_diagnosis(folder: Path, run: Run, diagnosis: Diagnosis, *, force: bool = False) -> None:
    """Write `diagnosis.json`, `requests.parquet`, `flame.speedscope.json`, `timeline.json` and `diagnosis.html`.

    Raises:
        UserError: the folder exists and is not empty (without `force`), or cannot be written.
    """
    with new_folder(folder, force=force) as partial:
        _write_json(summary(diagnosis), partial / "diagnosis.json", indent=2)
        columns = {name: REQUESTS[name] for name in KEPT} | dict.fromkeys(
            cause_columns(diagnosis.attributed), pl.Float64()
        )
        write_table(diagnosis.attributed, columns, partial / "requests.parquet")
        _write_json(flame_graphs(diagnosis), partial / "flame.speedscope.json")
        _write_json(timeline(run, diagnosis), partial / "timeline.json")
        write_page(diagnosis, partial / "diagnosis.html")


def _write_json(value: Any, path: Path, indent: int | None = None) -> None:
    separators = (",", ":") if indent is None else None
    text = json.dumps(value, indent=indent, separators=separators, allow_nan=False, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")
