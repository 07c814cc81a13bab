"""`simctl calibrate` from the command line, on a model small enough to be measured in a blink."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from calibrate.commands import calibrate
from calibrate.latency import StepLatency
from calibrate.microbench.grid import cpu_grid, cuda_grid, spread
from calibrate.microbench.journal import Journal
from calibrate.microbench.step import points
from calibrate.profile import Profile

CONFIG = {
    "model_type": "qwen3",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 128,
    "max_position_embeddings": 1024,
    "torch_dtype": "float32",
}


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(calibrate, [str(argument) for argument in arguments])


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(CONFIG))
    return path


def run(config: Path, out: Path, *more: object) -> Result:
    return invoke("run", "--device", "cpu", "--model", config, "--quick", "-o", out, *more)


def test_run_show_and_predict(config: Path, tmp_path: Path) -> None:
    out = tmp_path / "made" / "profile"
    result = run(config, out, "--tp", 2)
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in out.parent.iterdir()) == ["profile"]

    profile = Profile.load(out)
    assert profile.tp == 2 and profile.threads == 1 and profile.block_size == 16 and profile.is_cpu
    assert set(profile.tables) == {"dense", "per_sequence", "attention", "copy", "overhead"}
    assert "qk_norm" in set(profile.tables["dense"]["layer"])
    assert {"torch", "simctl"} <= profile.versions.keys() and profile.date and profile.device
    for name in ("dense", "per_sequence", "attention", "copy", "step"):
        assert profile.errors[name]["held_out_points"] >= 1
    for table in profile.tables.values():
        assert (table["p10"] <= table["seconds"]).all() and (table["seconds"] <= table["p90"]).all()
    latency = StepLatency(profile, profile.model, tp=2)
    assert 0 < latency.step((), 2, 100) < 1 and 0 < latency.step([(64, 0)], 2, 100) < 1

    picture = tmp_path / "picture.html"
    shown = invoke("show", out, "--picture", picture)
    assert shown.exit_code == 0 and "gate_up_proj" in shown.output and "whole steps" in shown.output
    assert "Roofline" in picture.read_text() and "http://" not in picture.read_text().split("<script>")[0]


def test_a_stopped_run_goes_on_where_it_was(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, kept = tmp_path / "profile", Journal.append
    appended: list[str] = []

    def stop_after_five(self: Journal, record: dict[str, Any]) -> None:
        if len(appended) == 5:
            raise KeyboardInterrupt
        kept(self, record)
        appended.append(record["visit"])

    monkeypatch.setattr(Journal, "append", stop_after_five)
    stopped = run(config, out)
    assert stopped.exit_code == 2 and "same command goes on" in stopped.output and not out.exists()
    partial = tmp_path / ".profile.measuring"
    with (partial / "points.jsonl").open("a") as journal:
        journal.write('{"visit": "half a li')  # as a kill in mid-write leaves it

    other = run(config, out, "--threads", 2)
    assert other.exit_code == 2 and "other settings (threads differs)" in other.output

    later: list[str] = []
    monkeypatch.setattr(Journal, "append", lambda self, record: (kept(self, record), later.append(record["visit"])))
    assert run(config, out).exit_code == 0
    assert len(appended) == 5 and later and not set(appended) & set(later)
    assert len(set(later)) == len(later)
    assert not partial.exists()
    whole = Profile.load(out)
    assert len(whole.tables["attention"]) == 3 * 2 + 3 * 3


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model", "no-such-model"], "no-such-model: no such model"),
        (["--model", "Qwen3-30B-A3B"], "mixture of experts"),
        (["--model", "tiny-llama", "--tp", "3"], "cannot be divided over tp = 3"),
    ],
)
def test_bad_models_leave_nothing_behind(tmp_path: Path, arguments: list[str], said: str) -> None:
    result = invoke("run", "--device", "cpu", "--quick", "-o", tmp_path / "p", *arguments)
    assert result.exit_code == 2 and said in result.output
    assert list(tmp_path.iterdir()) == []


def test_a_grid_longer_than_the_model_is_refused(config: Path, tmp_path: Path) -> None:
    config.write_text(json.dumps(CONFIG | {"max_position_embeddings": 100}))
    result = run(config, tmp_path / "p")
    assert result.exit_code == 2 and "contexts of 100 tokens" in result.output


def test_an_existing_profile_is_kept(config: Path, tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "notes.txt").write_text("mine")
    result = run(config, tmp_path / "p")
    assert result.exit_code == 2 and "--force" in result.output
    assert (tmp_path / "p" / "notes.txt").read_text() == "mine"


def test_without_torch_the_extra_is_named(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else found(name))
    result = run(config, tmp_path / "p")
    assert result.exit_code == 2 and "pip install 'simctl[torch]'" in result.output


def test_list_and_show_errors(tmp_path: Path) -> None:
    listed = invoke("list")
    assert listed.exit_code == 0 and "tiny-llama" in listed.output and "datasheet:h100-sxm-80gb" in listed.output
    shown = invoke("show", tmp_path / "nothing")
    assert shown.exit_code == 2 and "no such profile" in shown.output


def test_simulating_needs_no_torch() -> None:
    code = (
        "import sys, calibrate.latency, calibrate.memory, calibrate.datasheet, calibrate.commands\n"
        "assert not {'torch', 'plotly'} & set(sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("grid", [cpu_grid(), cuda_grid()])
def test_held_out_points_lie_inside_the_grid_and_not_on_it(grid: Any) -> None:
    assert not set(grid.held_out_tokens) & set(grid.tokens) and max(grid.held_out_tokens) < max(grid.tokens)
    assert not set(grid.held_out_sequences) & set(grid.sequences)
    on_grid = {(chunk, cached) for chunk in grid.chunks for cached in grid.prefill_contexts}
    assert not {tuple(point) for point in grid.held_out_prefills} & on_grid
    assert not {tuple(point) for point in grid.held_out_decodes} & {
        (n, cached) for n in grid.decodes for cached in grid.decode_contexts
    }
    for step in grid.held_out_steps:
        assert step.tokens <= max(grid.tokens) and step.sequences <= max(grid.sequences)
    measured = [json.dumps(point) for point in points(grid)]
    assert len(set(measured)) == len(measured)


@pytest.mark.parametrize(("sequences", "mean"), [(1, 90), (3, 100), (64, 192), (7, 0), (5, 2)])
def test_spread_contexts_keep_their_mean(sequences: int, mean: int) -> None:
    contexts = spread(sequences, mean)
    assert len(contexts) == sequences and sum(contexts) == sequences * mean and min(contexts) >= 0
