"""The scenarios of this folder, and how their numbers are told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sim.results.folder import Run
from sim.study.scenario import load_scenario
from sim.study.simulate import simulate

HERE = Path(__file__).parent


def simulated(scenario: str, settings: dict[str, Any] | None = None) -> Run:
    """The scenario of that name in this folder, with dotted keys set."""
    return simulate(load_scenario(HERE / f"{scenario}.yaml", settings or {}))


def share(part: float | None) -> str:
    return "" if part is None else f"{100 * part:.1f} %"


def seconds(value: float | None) -> str:
    if value is None:
        return ""
    return f"{1e3 * value:.0f} ms" if value < 1 else f"{value:.1f} s"


def gpu_hours(run: Run) -> str:
    return f"{run.metrics['gpu_seconds'] / 3600:.1f}"
