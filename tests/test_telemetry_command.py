"""simctl telemetry as a user types it: what it writes, that equal runs give equal bytes, and what is refused."""

import json
from pathlib import Path

import pytest
from command_line import refused, simctl, write_scenario
from openmetrics_files import last_totals, times_rise


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_scenario(tmp_path)
    monkeypatch.chdir(tmp_path)
    simctl("run", "s.yaml", "-o", "run")
    return tmp_path


def test_a_run_is_written_as_operators_see_it(here: Path) -> None:
    shown = simctl("telemetry", "run", "--interval", "0.5", "--sample", "1", "--epoch", "2026-02-03T04:05:06+01:00")
    assert shown.stdout.splitlines()[-1] == "run/telemetry"
    folder = here / "run" / "telemetry"
    assert {path.name for path in folder.iterdir()} == {"metrics.openmetrics.txt", "traces.otlp.json", "telemetry.json"}
    text = (folder / "metrics.openmetrics.txt").read_text()
    metrics = json.loads((here / "run" / "metrics.json").read_text())
    totals = last_totals(text)
    assert totals["vllm:request_success_total"] == metrics["requests"]["finished"] == 20
    rate = metrics["throughput"]["output_tokens"]
    assert totals["vllm:generation_tokens_total"] == pytest.approx(rate * metrics["duration"], rel=1e-12)
    assert times_rise(text) and "} 0.0 1770087906.0\n" in text
    assert '"le":' not in text and 'le="10.0"' in text and 'model_name="Llama-3.1-8B"' in text
    about = json.loads((folder / "telemetry.json").read_text())
    assert about["epoch"] == "2026-02-03T03:05:06+00:00"
    assert about["traces"]["requests"] == 20 and about["metrics"]["longest"] == 131_072
    assert about["metrics"]["left_out"] == {} and "spec_decode_*" in about["metrics"]["never_told"]

    simctl("run", "s.yaml", "-o", "again")
    simctl("telemetry", "again", "-o", "other", "--interval", "0.5", "--sample", "1", "--epoch", "2026-02-03T03:05:06Z")
    for name in ("metrics.openmetrics.txt", "traces.otlp.json"):
        assert (here / "other" / name).read_bytes() == (folder / name).read_bytes()


def test_one_of_the_two(here: Path) -> None:
    simctl("telemetry", "run", "--only", "metrics", "-o", "m")
    simctl("telemetry", "run", "--only", "traces", "-o", "t")
    assert {path.name for path in (here / "m").iterdir()} == {"metrics.openmetrics.txt", "telemetry.json"}
    assert {path.name for path in (here / "t").iterdir()} == {"traces.otlp.json", "telemetry.json"}


def test_a_server_of_before_and_a_run_without_a_model_file(here: Path) -> None:
    """Neither events nor the file that the model was read from."""
    (here / "run" / "events.parquet").unlink()
    scenario = here / "run" / "scenario.yaml"
    scenario.write_text(scenario.read_text().replace("model: Llama-3.1-8B", "model: /gone/some-model.json"))
    assert "left out vllm:num_preemptions" in simctl("telemetry", "run").stdout
    text = (here / "run" / "telemetry" / "metrics.openmetrics.txt").read_text()
    assert 'model_name="some-model"' in text
    about = json.loads((here / "run" / "telemetry" / "telemetry.json").read_text())
    assert about["metrics"]["longest"] < 200


def test_mistakes_are_one_line(here: Path) -> None:
    assert "nowhere: is no folder" in refused("telemetry", "nowhere")
    for interval in ("0", "-1", "0.0005", "nan"):
        assert "in whole milliseconds" in refused("telemetry", "run", "--interval", interval)
    for epoch in ("yesterday", "1970-01-01", "2026-01-01T00:00:00.5Z", "1969-01-01"):
        assert f"--epoch {epoch}" in refused("telemetry", "run", "--epoch", epoch)
    simctl("telemetry", "run", "--only", "traces")
    assert "exists and is not empty" in refused("telemetry", "run")
    simctl("telemetry", "run", "--only", "traces", "--force")
