"""What the terminal shows of a run."""

from pathlib import Path

import pytest
from telemetry_runs import SCENARIO

from sim.results.terminal import print_metrics
from sim.study.scenario import make_scenario
from sim.study.simulate import simulate


def shown(capsys: pytest.CaptureFixture[str], **fleet: object) -> str:
    print_metrics(simulate(make_scenario(SCENARIO, {"fleet": {"replicas": 2, **fleet}}, Path(), "s.yaml")).metrics)
    return capsys.readouterr().out


def test_it_shows_how_requests_were_lost_where_some_were(capsys: pytest.CaptureFixture[str]) -> None:
    plain = shown(capsys)
    assert "Rejected requests" in plain and "Shed requests" not in plain and "Timed out requests" not in plain
    lossy = shown(capsys, admission={"policy": "max_outstanding", "fleet": 20}, clients={"timeout": 0.5})
    assert "Shed requests" in lossy and "Timed out requests" in lossy and "Failed requests" not in lossy
