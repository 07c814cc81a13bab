"""What a symptom's scenarios came to, and how they are run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from gallery import Exhibit
from plotly.graph_objects import Figure

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


def symptom(title: str, text: str, rows: Sequence[Row], figures: Sequence[tuple[Figure, str]] = ()) -> Exhibit:
    header = ["figure", "reference", "simulated", "with the remedy"]
    return Exhibit(title, text, header, [astuple(row) for row in rows], figures)


def loaded(scenario: str, settings: dict[str, Any] | None = None) -> Scenario:
    """The scenario of that name in this folder, with dotted keys set."""
    return load_scenario(HERE / f"{scenario}.yaml", settings or {})


def simulated(scenario: str, settings: dict[str, Any] | None = None) -> Run:
    return simulate(loaded(scenario, settings))


def diagnosed(scenario: str, settings: dict[str, Any] | None = None) -> Diagnosis:
    """What its latency went into."""
    found = loaded(scenario, settings)
    return diagnose(simulate(found), deploy(found).step_times, measured=False)
