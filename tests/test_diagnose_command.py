"""simctl diagnose as a user types it: of a run, of a scenario, and what is refused."""

from pathlib import Path

import pytest
from command_line import refused, simctl, write_scenario


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_scenario(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_what_if_ranks_remedies_and_goes_on(here: Path) -> None:
    shown = simctl("diagnose", "s.yaml", "--what-if", "--workers", "1", "--set", "engine.max_num_seqs=1").stdout
    assert "as it stands" in shown and "more sequences" in shown
    folder = here / "runs" / "s-what-if"
    assert shown.rstrip().endswith("runs/s-what-if/what-if.html")
    written = {path.name for path in folder.iterdir()}
    assert written == {"what-if.yaml", "pairs.yaml", "points.jsonl", "what-if.json", "what-if.html"}
    before = (folder / "points.jsonl").read_bytes()
    simctl("diagnose", "s.yaml", "--what-if", "--set", "engine.max_num_seqs=1")
    assert (folder / "points.jsonl").read_bytes() == before
    assert "holds another what-if" in refused("diagnose", "s.yaml", "--what-if")


def test_what_if_names_mistakes(here: Path) -> None:
    assert "unknown" in refused("diagnose", "s.yaml", "--what-if", "--objective", "e2e.p98")
    assert "engine.max_num_seqs" in refused("diagnose", "s.yaml", "--what-if", "--set", "engine.max_num_seqs=many")
    assert "cannot be read" in refused("diagnose", "none.yaml", "--what-if")
    assert not (here / "runs").exists()


@pytest.mark.parametrize("option", [["--objective", "e2e.p99"], ["--set", "fleet.replicas=2"], ["--workers", "1"]])
def test_an_option_of_scenarios_is_refused_with_a_run(here: Path, option: list[str]) -> None:
    (here / "run").mkdir()
    message = refused("diagnose", "run", *option)
    assert f"{option[0]}: was given with run" in message and "--what-if" in message


@pytest.mark.parametrize("option", [["--profile", "datasheet:h100-sxm-80gb"], ["--force"]])
def test_an_option_of_runs_is_refused_with_a_scenario(here: Path, option: list[str]) -> None:
    message = refused("diagnose", "s.yaml", "--what-if", *option)
    assert f"{option[0]}: was given with s.yaml" in message and "no --what-if" in message
    assert not (here / "runs").exists()


def test_a_run_and_a_scenario_are_not_confused(here: Path) -> None:
    (here / "run").mkdir()
    assert "s.yaml: is a file" in (message := refused("diagnose", "s.yaml")) and "--what-if" in message
    assert "--what-if" in refused("diagnose", "s.yaml", "--objective", "ttft.p99")
    assert "run: is a folder; expected a scenario file" in refused("diagnose", "run", "--what-if")
    assert "nowhere: is no folder" in refused("diagnose", "nowhere")


def test_a_run_from_before_there_were_events_is_diagnosed(here: Path) -> None:
    simctl("run", "s.yaml", "-o", "old")
    (here / "old" / "events.parquet").unlink()
    shown = simctl("diagnose", "old").stdout
    assert "20 finished requests" in shown and "no table of events" in " ".join(shown.split())
