"""A run's telemetry on disk: metrics, traces, and what they leave out; written whole or not at all."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ground.errors import UserError
from ground.folder import new_folder
from sim.results.folder import Run
from sim.results.telemetry.left_out import reservations
from sim.results.telemetry.openmetrics import write_openmetrics
from sim.results.telemetry.vllm_metrics import NEVER_TOLD, version_of

METRICS, TRACES, ABOUT = "metrics.openmetrics.txt", "traces.otlp.json", "telemetry.json"


@dataclass(frozen=True)
class TelemetrySettings:
    """`interval`: seconds between two samples of a replica; `epoch`: the Unix time of the run's second 0; `longest`:
    tokens of the longest sequence that an engine takes; the others as in `traces.write_traces`."""

    interval: float = 15.0
    epoch: int = 0
    share: float = 0.01
    slowest: int = 20
    most_steps: int = 1000
    seed: int = 0
    longest: int | None = None
    metrics: bool = True
    traces: bool = True


def parse_epoch(text: str) -> int:
    """Unix seconds of an ISO 8601 time; without a zone it is UTC.

    Raises:
        UserError: not such a time, or before 1970, or not on a full second.
    """
    expected = "expected a full second from 1970 on, such as 2026-01-01T00:00:00Z"
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise UserError(f"--epoch {text}: no ISO 8601 time; {expected}") from error
    seconds = moment.replace(tzinfo=moment.tzinfo or UTC).timestamp()
    if seconds < 1 or not seconds.is_integer():  # a span at 0 has no time
        raise UserError(f"--epoch {text}: found {seconds:g} s since 1970; {expected}")
    return int(seconds)


def write_telemetry(folder: Path, run: Run, settings: TelemetrySettings, *, force: bool = False) -> dict[str, Any]:
    """Write `metrics.openmetrics.txt`, `traces.otlp.json` and `telemetry.json`, whose content is returned.

    Equal runs and settings give equal bytes.

    Raises:
        UserError: the folder exists and is not empty (without `force`), cannot be written, there would be too many
            samples, or the packages are missing.
    """
    epoch = settings.epoch
    about: dict[str, Any] = {"run": run.name, "epoch": datetime.fromtimestamp(epoch, UTC).isoformat()}
    preset = run.scenario.get("engine", {}).get("preset", "")
    with new_folder(folder, force=force) as partial:
        try:
            if settings.metrics:
                metrics = write_openmetrics(
                    run, partial / METRICS, interval=settings.interval, epoch=epoch, longest=settings.longest
                )
                about["metrics"] = {
                    "interval": settings.interval,
                    "names": version_of(preset),
                    **asdict(metrics),
                    "never_told": NEVER_TOLD,
                    "notes": reservations(run),
                }
            if settings.traces:
                from sim.results.telemetry.traces import write_traces

                traces = write_traces(
                    run,
                    partial / TRACES,
                    epoch=epoch,
                    share=settings.share,
                    slowest=settings.slowest,
                    most_steps=settings.most_steps,
                    seed=settings.seed,
                )
                about["traces"] = {"share": settings.share, "slowest": settings.slowest, **asdict(traces)}
        except ModuleNotFoundError as error:
            raise UserError(
                f"package {error.name} is missing; expected what `pip install simctl[telemetry]` gives"
            ) from error
        text = json.dumps(about, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        (partial / ABOUT).write_text(text, encoding="utf-8")
    return about
