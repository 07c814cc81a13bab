"""The watts that a device draws: idle, computing prompts, and decoding so many sequences."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from calibrate.datasheet import device_like
from calibrate.profile import Profile
from calibrate.profile_sources import source_of
from ground.assumption import Assumption, Source
from ground.errors import UserError

_STATES = ("idle", "prefill", "decode")


@dataclass(frozen=True)
class PowerLaw:
    """Watts of one device, and who says so.

    `decode` is known for batches of so many `sequences`: linear between them, and beyond them as at the nearest.
    """

    idle: float
    prefill: float
    sequences: tuple[float, ...]  # rising
    decode: tuple[float, ...]
    source: Source
    note: str

    def decode_watts(self, sequences: np.ndarray) -> np.ndarray:
        """Of batches of so many sequences; an array of the same shape."""
        return np.interp(sequences, self.sequences, self.decode)

    def assumptions(self) -> list[Assumption]:
        """The law as a run states it, with the decode of the largest batch that is known."""
        watts = {"idle": self.idle, "prefill": self.prefill, "decode": self.decode[-1]}
        return [Assumption(f"power.{state}", value, "W", self.source, self.note) for state, value in watts.items()]


def power_law(profile: Profile) -> PowerLaw | None:
    """From the profile's table `power`; without one the device's datasheet, by which a device that does anything draws
    its board power. None where neither knows the device.

    Raises:
        UserError: the table lacks a state, or its watts are impossible.
    """
    if "power" in profile.tables:
        return _measured(profile)
    device = device_like(profile.device)
    if device is None:
        return None
    note = (
        f"datasheet of {device.name}: board power whenever it computes, an upper bound; idle as public logs show a "
        "device without a process, a lower one"
    )
    return PowerLaw(device.idle, device.tdp, (1.0,), (device.tdp,), "datasheet", note)


def _measured(profile: Profile) -> PowerLaw:
    table = profile.tables["power"]
    name = f"profile {profile.name}: table power"
    if "watts" not in table.columns:
        raise UserError(f"{name}: column watts is missing; found {', '.join(table.columns)}")
    watts = table["watts"].cast(pl.Float64)
    if not (watts.is_finite() & (watts > 0)).fill_null(False).all():
        raise UserError(f"{name}: column watts holds {watts.to_list()}; expected watts above zero in every row")
    by_state = {state: table.filter(pl.col("state") == state).sort("sequences") for state in _STATES}
    for state, rows in by_state.items():
        if rows.is_empty():
            raise UserError(f"{name}: no row of state {state}; expected {', '.join(_STATES)}")
    decode = by_state["decode"]
    return PowerLaw(
        idle=float(by_state["idle"]["watts"][0]),
        prefill=float(by_state["prefill"]["watts"][-1]),
        sequences=tuple(map(float, decode["sequences"])),
        decode=tuple(map(float, decode["watts"])),
        source=source_of(profile),
        note=f"{name}; decode of the largest batch measured",
    )
