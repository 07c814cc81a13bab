"""What a symptom's scenarios came to, and how they are run."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from plotly.graph_objects import Figure, Scatter

from sim.results.diagnosis.diagnosis import Diagnosis, diagnose
from sim.results.folder import Run
from sim.study.deployment import deploy
from sim.study.scenario import Scenario, load_scenario
from sim.study.simulate import simulate

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Row:
    """One figure: as it was reported, as simulated, and with the remedy. Empty where there is none."""

    figure: str
    reference: str
    simulated: str
    remedy: str = ""


@dataclass(frozen=True)
class Symptom:
    title: str
    text: str
    rows: list[Row]
    figures: list[tuple[Figure, str]] = field(default_factory=list)  # each with its caption


def loaded(scenario: str, settings: dict[str, Any] | None = None) -> Scenario:
    """The scenario of that name in this folder, with dotted keys set."""
    return load_scenario(HERE / f"{scenario}.yaml", settings or {})


def simulated(scenario: str, settings: dict[str, Any] | None = None) -> Run:
    return simulate(loaded(scenario, settings))


def lines(curves: dict[str, tuple[list[float], list[float]]], x: str, y: str, **layout: Any) -> Figure:
    """One line a name: its x and y values."""
    figure = Figure([Scatter(name=name, x=xs, y=ys, mode="lines+markers") for name, (xs, ys) in curves.items()])
    figure.update_layout(xaxis_title=x, yaxis_title=y, **layout)
    return figure


def diagnosed(scenario: str, settings: dict[str, Any] | None = None) -> Diagnosis:
    """What its latency went into."""
    found = loaded(scenario, settings)
    return diagnose(simulate(found), deploy(found).step_times, measured=False)
