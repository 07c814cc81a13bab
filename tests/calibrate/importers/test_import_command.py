"""`simctl calibrate import`: what it writes is what was read, and nothing where it refuses."""

from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from llmservingsim_folders import CONFIG, write_model, write_variant

from calibrate.commands import calibrate
from calibrate.importers.llmservingsim import read
from calibrate.profile import Profile


def run(*arguments: object) -> Result:
    return CliRunner().invoke(calibrate, ["import", *(str(argument) for argument in arguments)])


def test_import_writes_what_load_reads_back(tmp_path: Path) -> None:
    variant, out = write_variant(tmp_path / "src", degrees=(1, 2)), tmp_path / "new" / "profile"
    result = run("llmservingsim", variant, "--tp", 2, "-o", out)
    assert result.exit_code == 0, result.output
    assert f"Profile written to {out}" in " ".join(result.output.split()) and "gate_up_proj" in result.output
    loaded, direct = Profile.load(out), read(str(variant), None, 2)
    assert {name: table.to_dicts() for name, table in loaded.tables.items()} == {
        name: table.to_dicts() for name, table in direct.tables.items()
    }
    assert replace(loaded, tables={}) == replace(direct, tables={})


def test_import_takes_the_model_given(tmp_path: Path) -> None:
    variant = write_variant(tmp_path / "src")
    config = write_model(tmp_path, CONFIG | {"num_hidden_layers": 5}, "Five")
    assert run("llmservingsim", variant, "--model", config, "-o", tmp_path / "p").exit_code == 0
    assert Profile.load(tmp_path / "p").shape.layers == 5


def test_import_replaces_nothing_unless_forced(tmp_path: Path) -> None:
    variant, out = write_variant(tmp_path / "src"), tmp_path / "p"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    refused = run("llmservingsim", variant, "-o", out)
    assert refused.exit_code == 2 and "--force" in refused.output
    assert [path.name for path in out.iterdir()] == ["notes.txt"]
    assert run("llmservingsim", variant, "-o", out, "--force").exit_code == 0
    assert Profile.load(out).tp == 1


@pytest.mark.parametrize(
    ("format", "source", "words"),
    [
        ("nonsense", "src", "nonsense: no such format; expected one of aiconfigurator, llmservingsim, vidur"),
        ("llmservingsim", "nowhere", "nowhere: no such folder"),
        ("llmservingsim", "src", "holds neither dense.csv nor layers.csv"),
    ],
)
def test_a_wrong_import_writes_nothing(tmp_path: Path, format: str, source: str, words: str) -> None:
    (tmp_path / "src").mkdir()
    result = run(format, tmp_path / source, "-o", tmp_path / "p")
    assert result.exit_code == 2 and words in result.output
    assert [path.name for path in tmp_path.iterdir()] == ["src"]


def test_list_shows_formats_and_collectives() -> None:
    listed = CliRunner().invoke(calibrate, ["list"], env={"COLUMNS": "200"})
    assert listed.exit_code == 0
    for word in ("aiconfigurator", "llmservingsim", "vidur", "Collectives between GPUs", "reduce_scatter", "l40s"):
        assert word in listed.output, word
