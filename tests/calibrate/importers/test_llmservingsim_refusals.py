"""LLMServingSim's profiles that cannot be read: what is wrong is named in one line."""

from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
from llmservingsim_folders import spoil, write_variant

from calibrate.importers.llmservingsim import read
from ground.errors import UserError


@pytest.fixture
def variant(tmp_path: Path) -> Path:
    return write_variant(tmp_path)


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        ("dense.csv", lambda t: t.drop("tokens"), r"dense.csv: column tokens is missing; found layer, time_us"),
        ("dense.csv", lambda t: t.drop("layer"), r"dense.csv: column layer is missing; found tokens, time_us"),
        ("dense.csv", lambda t: t.drop("time_us"), r"dense.csv: column time_us is missing; found layer, tokens"),
        ("attention.csv", lambda t: t.drop("kv_decode"), r"attention.csv: column kv_decode is missing"),
        (
            "per_sequence.csv",
            lambda t: t.with_columns(sequences=pl.lit("x")),
            r"per_sequence.csv: column sequences is String; expected numbers",
        ),
        (
            "per_sequence.csv",
            lambda t: t.with_columns(time_us=pl.when(pl.int_range(pl.len()) != 2).then("time_us")),
            r"per_sequence.csv: row 2, column time_us is None; expected a time",
        ),
        (
            "dense.csv",
            lambda t: t.with_columns(time_us=pl.when(pl.int_range(pl.len()) == 3).then(-1.5).otherwise("time_us")),
            r"dense.csv: row 3, column time_us is -1.5; expected a time",
        ),
    ],
)
def test_a_spoilt_table_is_named(
    variant: Path, file: str, change: Callable[[pl.DataFrame], pl.DataFrame], words: str
) -> None:
    spoil(variant / "tp1" / file, change)
    with pytest.raises(UserError, match=words) as caught:
        read(str(variant), None, None)
    assert "\n" not in caught.value.format_message()


@pytest.mark.parametrize(
    ("text", "words"),
    [("model: [", r"meta.yaml: not YAML \("), ("- a\n- b\n", r"meta.yaml: found list, expected a mapping of keys")],
)
def test_a_spoilt_meta_is_named(variant: Path, text: str, words: str) -> None:
    (variant / "meta.yaml").write_text(text)
    with pytest.raises(UserError, match=words) as caught:
        read(str(variant), None, None)
    assert "\n" not in caught.value.format_message()


def test_missing_files_and_folders_are_named(variant: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere: no such folder; expected a profile of LLMServingSim"):
        read(str(tmp_path / "nowhere"), None, None)
    with pytest.raises(UserError, match=r"models: holds neither dense.csv nor layers.csv, nor folders tp1, tp2"):
        read(str(tmp_path / "models"), None, None)
    (variant / "tp1" / "attention.csv").unlink()
    with pytest.raises(UserError, match=r"attention.csv: no such file"):
        read(str(variant), None, None)
    (variant / "tp1" / "attention.csv").write_bytes(b"")
    with pytest.raises(UserError, match=r"attention.csv: not a readable CSV file") as caught:
        read(str(variant), None, None)
    assert "\n" not in caught.value.format_message()
