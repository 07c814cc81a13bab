"""A folder appears whole under its name or not at all."""

import os
from pathlib import Path

import pytest

from ground.errors import UserError
from ground.folder import new_folder


def test_appears_when_complete(tmp_path: Path) -> None:
    target = tmp_path / "a" / "run"
    with new_folder(target) as partial:
        (partial / "x").write_text("1")
        assert not target.exists()
    assert (target / "x").read_text() == "1"
    assert os.listdir(target.parent) == ["run"]


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), new_folder(tmp_path / "run") as partial:
        (partial / "x").write_text("1")
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []


def test_a_failure_keeps_what_force_would_replace(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "old").write_text("1")
    with pytest.raises(ValueError), new_folder(tmp_path / "run", force=True):
        raise ValueError
    assert os.listdir(tmp_path / "run") == ["old"]


def test_force_replaces_all_of_it(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "old").write_text("1")
    with new_folder(tmp_path / "run", force=True) as partial:
        (partial / "new").write_text("1")
    assert os.listdir(tmp_path / "run") == ["new"]


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with new_folder(tmp_path / "run") as partial:
        (partial / "new").write_text("1")
    assert os.listdir(tmp_path / "run") == ["new"]


def test_refuses_a_full_folder_and_a_file(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "old").write_text("1")
    with pytest.raises(UserError, match="not empty"), new_folder(tmp_path / "run"):
        pass
    with pytest.raises(UserError, match="is a file"), new_folder(tmp_path / "run" / "old", force=True):
        pass


def test_says_what_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("1")
    with pytest.raises(UserError, match=r"cannot be written"), new_folder(tmp_path / "file" / "run"):
        pass
