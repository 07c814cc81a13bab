"""A finished search on disk: its table of points, what was found, complete runs of the winners, the page."""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import polars as pl

from ground.errors import UserError
from ground.whole_file import whole_file
from sim.results.folder import write_run
from sim.results.metric_names import METRICS
from sim.study.intervals import Interval, share_at_most
from sim.study.points import table_cell
from sim.study.scenario import lookup
from sim.study.search.comparison import broken, comparisons
from sim.study.search.explore import BASELINE, Found
from sim.study.search.objectives import QUALITY
from sim.study.search.report import write_search_report
from sim.study.simulate import simulate


def write_search(found: Found, folder: Path) -> None:
    """Write `points.parquet` (a row a point: mean metrics over seeds and traces), `search.json` (what was found),
    `winners.json`, `winners/NAME/` (runs under the first fresh seed), as a sweep has them, and `report.html`."""
    table = points_table(found)
    with whole_file(folder / "points.parquet") as partial:
        table.write_parquet(partial)
    _write_json(_as_json(found), folder / "search.json")
    shutil.rmtree(folder / "winners", ignore_errors=True)
    entries = _winners(found)
    for entry in entries:
        # A seed under which it fails, though no seed of the search did, leaves no run to show.
        cell = found.study.cells(fresh=found.fresh[entry["point"]].status == "ok")[0][0]
        scenario = found.study.scenario_of({**cell, **entry["parameters"]})
        write_run(folder / entry["run"], simulate(scenario))
    _write_json(entries, folder / "winners.json")
    with whole_file(folder / "report.html") as partial:
        write_search_report(found, table, partial)


def points_table(found: Found) -> pl.DataFrame:
    """A row a point: number, parameters, status, share of the trace, error, whether it keeps to the constraints, and
    means of the metrics; of stopped points, of the part that was simulated."""
    names = [*METRICS, *QUALITY]
    known = {name for trial in found.trials.values() for name in trial.values}
    rows = []
    for number, trial in found.trials.items():
        defaults: dict[str, Any] = {}
        with suppress(UserError):  # a setting that makes no scenario shows what it set itself
            defaults = found.study.scenario_of(trial.setting).resolved()
        violations = trial.violations(found.study.limits)
        kept = None if trial.status != "ok" else not any(violations.values())
        means: dict[str, float | None] = {}
        for name in names:
            if name in known:
                means[name] = None
                with suppress(KeyError):
                    means[name] = trial.mean(name)
        rows.append(
            {"point": number}
            | {key: table_cell(trial.setting.get(key, lookup(defaults, key))) for key in found.study.parameters}
            | {"status": trial.status, "share": trial.share, "error": trial.error, "constraints.kept": kept}
            | means
        )
    return pl.DataFrame(rows, infer_schema_length=None, strict=False)


def _winners(found: Found) -> list[dict[str, Any]]:
    names = {f"winner-{place}": number for place, number in enumerate(found.winners, start=1)}
    if found.baseline is not None:
        names["baseline"] = BASELINE
    return [
        {
            "name": name,
            "point": number,
            "parameters": found.trials[number].setting,
            "run": f"winners/{name}",
            "objective": found.study.wanted[0].metric,
        }
        for name, number in names.items()
    ]


def _as_json(found: Found) -> dict[str, Any]:
    counts = [trial.status for trial in found.trials.values()]
    audit = None
    if found.audited:
        limit = share_at_most(len(found.missed), len(found.audited), found.study.confidence)
        audit = {"points": found.audited, "would_have_won": found.missed, "share_at_most": limit}
    return {
        "objectives": [str(each) for each in found.study.wanted],
        "constraints": [str(each) for each in found.study.limits],
        "whole_space": found.whole,
        "points": {status: counts.count(status) for status in ("ok", "stopped", "failed", "refused")},
        "requests_simulated": found.requests,
        "audit": audit,
        "front": found.front,
        "winners": found.winners,
        "confidence": found.study.confidence,
        "comparisons": [
            {
                "point": row.trial,
                "against": row.other,
                "metric": row.metric,
                "value": _interval(row.one),
                "other": _interval(row.against),
                "difference": _interval(row.change),
                "verdict": row.verdict,
            }
            for row in comparisons(found)
        ],
        "broken_under_fresh_seeds": {str(number): broken(found, number) for number in found.winners},
    }


def _interval(interval: Interval) -> dict[str, float | None]:
    return {"mean": interval.mean, "half_width": interval.half}


def _write_json(data: Any, path: Path) -> None:
    with whole_file(path) as partial:
        partial.write_text(json.dumps(data, indent=2, allow_nan=False) + "\n", encoding="utf-8")
