"""Seconds to copy KV blocks between the device and host memory."""

from __future__ import annotations

import polars as pl

from calibrate.curve import Curve
from calibrate.profile import Profile
from ground.assumption import Assumption
from ground.errors import UserError


class CopyLaw:
    """Time by bytes and direction, from a profile's copies: of pinned memory where it has them, as an engine uses it.

    Between measured sizes time is linear; beyond the largest it grows with bytes. Where the profile was measured on a
    CPU, both directions are its copies from host to host.

    Raises:
        UserError: the profile holds no copies and no bandwidth is given.
    """

    def __init__(self, profile: Profile, block_bytes: int, bandwidth: float | None = None) -> None:
        """`block_bytes` of one block, all layers; `bandwidth` in bytes/s stands in where nothing was measured."""
        self.block_bytes = block_bytes
        if "copy" in profile.tables:
            table = profile.table("copy")
            self._out, self._into = _curve(table, "device_to_host"), _curve(table, "host_to_device")
            note = "copies between device and host, as measured"
            self.assumption = Assumption("engine.copies", profile.name, "", "measured", note)
        elif bandwidth is not None:
            self._out = self._into = Curve([0.0, 1.0], [0.0, 1.0 / bandwidth])
            note = "given in the scenario; copies take this and no latency"
            self.assumption = Assumption("engine.host_bandwidth", bandwidth, "bytes/s", "user", note)
        else:
            raise UserError(
                f"profile {profile.name}: holds no copies between device and host, which engine.swap_blocks, "
                "kv_offload and weight_offload need; expected a measured profile, or engine.host_bandwidth in bytes/s"
            )

    def __call__(self, out: int, into: int) -> tuple[float, bool]:
        """Seconds to copy `out` blocks out of the device and `into` blocks into it, one after the other, and whether
        both lie inside the measured grid."""
        seconds, inside = 0.0, True
        for curve, blocks in ((self._out, out), (self._into, into)):
            if blocks:
                size = blocks * self.block_bytes
                seconds += curve(size)
                inside = inside and curve.covers(size)
        return seconds, inside


def _curve(table: pl.DataFrame, direction: str) -> Curve:
    rows = table.filter(pl.col("direction") == direction)
    if rows.is_empty():
        rows = table.filter(pl.col("direction") == "host_to_host")
    pinned = rows.filter(pl.col("memory") == "pinned")
    rows = (rows if pinned.is_empty() else pinned).sort("bytes")
    return Curve(rows["bytes"].to_list(), rows["seconds"].to_list())
