"""Where the times of collective operations come from: the profile, or a bundled table of its device."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from calibrate.collective_law import Collectives
from calibrate.datasheet import device_like
from calibrate.profile import Profile

_BUNDLED = Path(__file__).parent / "collectives"


def collectives_of(profile: Profile) -> Collectives | None:
    """None where neither the profile nor a bundled table knows."""
    if "collective" in profile.tables:
        return Collectives(profile.table("collective"), f"profile {profile.name}")
    device = device_like(profile.device)
    path = None if device is None else _BUNDLED / f"{device.name}.parquet"
    if path is None or not path.is_file():
        return None
    table = pl.read_parquet(path)
    return Collectives(table, ", ".join(table["source"].unique().sort()))


def bundled_collectives() -> list[tuple[str, str, str, str]]:
    """(device, operations, between how many GPUs, from where) of every bundled table."""
    rows = []
    for path in sorted(_BUNDLED.glob("*.parquet")):
        by_operation = pl.read_parquet(path).group_by("source", "operation").agg(pl.col("ranks").unique().sort())
        by_ranks = by_operation.sort("source", "operation").group_by("source", "ranks", maintain_order=True)
        for (source, ranks), part in by_ranks:
            rows.append((path.stem, ", ".join(part["operation"]), ", ".join(map(str, ranks)), str(source)))
    return rows
