"""The examples of fleets: their scenarios can be read, and one runs from the command line to its page."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from sim.study.scenario import load_scenario

FOLDER = Path(__file__).parents[1] / "examples" / "fleet"


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_scenario_is_valid(path: Path) -> None:
    load_scenario(path)


def test_one_load_for_all_and_a_peer_shorten_the_wait_for_weights(tmp_path: Path) -> None:
    out = tmp_path / "fleet"
    done = subprocess.run(
        [sys.executable, str(FOLDER / "run.py"), "stampede", "-o", str(out)],
        capture_output=True,
        text=True,
        check=True,
        timeout=240,
    )
    assert "Stampede" in done.stdout
    [exhibit] = json.loads((out / "fleet.json").read_text())
    loads = [int(row["loads in an hour"].replace(",", "")) for row in exhibit["rows"]]
    waits = [float(row["wait for weights p99"].removesuffix(" s")) for row in exhibit["rows"]]
    assert loads[0] > loads[1] and waits[0] > waits[1] > waits[2]
    assert "What does a fleet do?" in (out / "report.html").read_text()
