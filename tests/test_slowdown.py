"""The examples of slowdown: their scenarios can be read, and one symptom runs from the command line to its page."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sim.study.scenario import load_scenario

FOLDER = Path(__file__).parents[1] / "examples" / "slowdown"


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_scenario_is_valid(path: Path) -> None:
    load_scenario(path)


def test_a_symptom_gives_its_calibrated_figure_and_a_page(tmp_path: Path) -> None:
    out = tmp_path / "slowdown"
    done = subprocess.run(
        [sys.executable, str(FOLDER / "run.py"), "pipeline", "-o", str(out)],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert "Synchronous" in done.stdout and re.search(r"report\.html \(\d+ s\)\n$", done.stdout)
    [symptom] = json.loads((out / "slowdown.json").read_text())
    latency, rate = symptom["rows"]
    assert latency["simulated"] == "128 ms" and latency["reference"].startswith("128 ms")
    # 97 clients in a closed loop: Little's law.
    assert float(rate["simulated"]) == pytest.approx(97 / 0.128, rel=0.01)
    overlapped = float(re.match(r"(\d+) ms", latency["with the remedy"]).group(1))  # type: ignore[union-attr]
    assert 64 <= overlapped < 128  # two stages gain a factor of two at most
    page = (out / "report.html").read_text()
    assert "Why does it get slower?" in page and "128 ms" in page


def test_names_are_checked(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(FOLDER / "run.py"), "nonsense", "-o", str(tmp_path / "x")],
        capture_output=True,
        check=False,
    )
    assert done.returncode == 2 and not (tmp_path / "x").exists()
