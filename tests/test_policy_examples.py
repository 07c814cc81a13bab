"""The studies of `make policies`: that each is one, and that all its settings go together."""

from pathlib import Path

import pytest

from sim.study.search.study import load_search

STUDIES = sorted((Path(__file__).parents[1] / "examples" / "policies").glob("*.yaml"))


@pytest.mark.parametrize(
    "path", [path for path in STUDIES if "objectives:" in path.read_text(encoding="utf-8")], ids=lambda path: path.stem
)
def test_every_setting_makes_a_scenario(path: Path) -> None:
    study = load_search(path)
    whole = study.space.size(study.points) is not None
    for setting in [study.baseline, *study.space.settings()] if whole else [study.baseline]:
        study.scenario_of(setting)


def test_the_makefile_runs_studies_that_exist() -> None:
    makefile = (Path(__file__).parents[1] / "Makefile").read_text(encoding="utf-8")
    named = next(line for line in makefile.splitlines() if line.startswith("STUDIES := ")).split()[2:]
    assert set(named) <= {path.stem for path in STUDIES} and len(named) == 5
