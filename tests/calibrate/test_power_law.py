"""Watts of a device: as measured by batch, or as its datasheet bounds them."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from known_profile import make_profile

from calibrate.datasheet import datasheet_profile, devices
from calibrate.model import load_model
from calibrate.power_law import power_law
from calibrate.profile import Profile
from ground.errors import UserError

ROWS = [
    {"state": "idle", "sequences": 0, "seconds": 0.1, "watts": 80.0},
    {"state": "prefill", "sequences": 1, "seconds": 0.1, "watts": 640.0},
    {"state": "decode", "sequences": 8, "seconds": 0.1, "watts": 300.0},
    {"state": "decode", "sequences": 1, "seconds": 0.1, "watts": 260.0},
    {"state": "decode", "sequences": 64, "seconds": 0.1, "watts": 420.0},
]


def measured(rows: list[dict[str, object]]) -> Profile:
    profile = make_profile()
    return replace(profile, tables={**profile.tables, "power": pl.DataFrame(rows)})


def test_watts_are_linear_between_the_batches_that_were_measured() -> None:
    law = power_law(measured(ROWS))
    assert law is not None and law.source == "measured"
    assert (law.idle, law.prefill) == (80.0, 640.0)
    watts = law.decode_watts(np.array([0.5, 1, 4.5, 8, 36, 64, 500]))
    assert watts == pytest.approx([260, 260, 280, 300, 360, 420, 420])


@given(st.lists(st.floats(0, 1000), min_size=1, max_size=20))
def test_watts_stay_within_what_was_measured(sequences: list[float]) -> None:
    law = power_law(measured(ROWS))
    assert law is not None
    watts = law.decode_watts(np.array(sorted(sequences)))
    assert (watts >= 260).all() and (watts <= 420).all() and (np.diff(watts) >= 0).all()


@pytest.mark.parametrize("name", list(devices()))
def test_a_datasheet_bounds_them(name: str) -> None:
    law = power_law(datasheet_profile(name, load_model("Llama-3.1-8B"), 1))
    assert law is not None and law.source == "datasheet"
    assert 0 < law.idle < law.prefill == devices()[name].tdp
    assert set(law.decode_watts(np.array([1.0, 7.0, 300.0]))) == {law.prefill}
    assert [assumption.source for assumption in law.assumptions()] == ["datasheet"] * 3


def test_an_unknown_device_has_none() -> None:
    assert power_law(make_profile()) is None


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (ROWS[1:], "no row of state idle"),
        (ROWS[:1], "no row of state prefill"),
        ([{key: row[key] for key in row if key != "watts"} for row in ROWS], "column watts is missing"),
        ([*ROWS[:-1], ROWS[-1] | {"watts": -1.0}], "expected watts above zero"),
        ([*ROWS[:-1], ROWS[-1] | {"watts": None}], "expected watts above zero"),
    ],
)
def test_an_impossible_table_is_refused(rows: list[dict[str, object]], said: str) -> None:
    with pytest.raises(UserError, match=said):
        power_law(measured(rows))
