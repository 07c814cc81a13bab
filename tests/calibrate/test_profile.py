"""A profile survives its folder, and a spoilt folder is refused in one line that says where."""

import json
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from calibrate.datasheet import datasheet_profile
from calibrate.model import load_model
from calibrate.profile import Profile, load_profile
from ground.errors import UserError

MODEL = load_model("Llama-3.1-8B")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    datasheet_profile("l40s", MODEL, 2).save(tmp_path / "p")
    return tmp_path / "p"


def test_round_trip(folder: Path) -> None:
    made, read = datasheet_profile("l40s", MODEL, 2), Profile.load(folder)
    assert {**made.__dict__, "tables": None} == {**read.__dict__, "tables": None}
    assert made.tables.keys() == read.tables.keys()
    for name, table in made.tables.items():
        assert_frame_equal(table, read.tables[name])


def test_load_profile_takes_a_folder_beside_the_scenario_or_a_datasheet(folder: Path) -> None:
    assert load_profile("p", MODEL, 2, folder.parent).device == "l40s"
    assert load_profile(str(folder), MODEL, 2, Path("/nowhere")).tp == 2
    assert load_profile("datasheet:rtx-4090", MODEL, 1, folder.parent).device == "rtx-4090"
    with pytest.raises(UserError, match="h100-sxm-80gb"):
        load_profile("datasheet:abacus", MODEL, 1, folder.parent)
    with pytest.raises(UserError, match="absent: no such profile"):
        load_profile("absent", MODEL, 1, folder.parent)


def edit_json(change: Callable[[dict[str, object]], object]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        meta = json.loads((folder / "profile.json").read_text())
        change(meta)
        (folder / "profile.json").write_text(json.dumps(meta))

    return spoil


def edit_dense(change: Callable[[pl.DataFrame], pl.DataFrame]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        change(pl.read_parquet(folder / "dense.parquet")).write_parquet(folder / "dense.parquet")

    return spoil


def set_seconds(value: float | None) -> Callable[[pl.DataFrame], pl.DataFrame]:
    return lambda table: table.with_columns(
        seconds=pl.when(pl.int_range(pl.len()) == 3).then(pl.lit(value, pl.Float64)).otherwise("seconds")
    )


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: (folder / "profile.json").write_text("{"), "profile.json: not a JSON"),
        (edit_json(lambda meta: meta.update(schema_version=99)), "schema_version is 99; expected 1"),
        (edit_json(lambda meta: meta.pop("device")), "key device is missing"),
        (edit_json(lambda meta: meta.update(model={"rope_scaling": None, "wings": 2})), "keys model and provenance"),
        (edit_dense(lambda table: table.drop("tokens")), "dense.parquet: column tokens is missing"),
        (edit_dense(lambda table: table.with_columns(pl.col("tokens").cast(pl.String))), "column tokens is String"),
        (edit_dense(set_seconds(-1.0)), "row 3, column seconds is -1.0"),
        (edit_dense(set_seconds(float("nan"))), "row 3, column seconds is nan"),
        (edit_dense(set_seconds(None)), "row 3, column seconds is empty"),
        (edit_dense(lambda table: pl.concat([table, table[:1]])), "row 0 is not the only one"),
        (lambda folder: (folder / "dense.parquet").write_bytes(b"no"), "dense.parquet: not a readable Parquet"),
    ],
)
def test_spoilt_folders(folder: Path, spoil: Callable[[Path], None], said: str) -> None:
    spoil(folder)
    with pytest.raises(UserError) as raised:
        Profile.load(folder)
    assert said in raised.value.message and "\n" not in raised.value.message


def test_save_never_overwrites_unasked(folder: Path) -> None:
    with pytest.raises(UserError, match="--force"):
        datasheet_profile("l40s", MODEL, 1).save(folder)
    assert Profile.load(folder).tp == 2
    datasheet_profile("l40s", MODEL, 1).save(folder, force=True)
    assert Profile.load(folder).tp == 1
