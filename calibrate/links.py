"""Where the times of collective operations come from: the profile, a bundled table of its device, or how its GPUs are
linked."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from calibrate.collective_law import Collectives
from calibrate.datasheet import device_like
from calibrate.fabric import FABRICS
from calibrate.profile import Profile
from calibrate.profile_sources import source_of

_BUNDLED = Path(__file__).parent / "collectives"


def collectives_of(profile: Profile) -> Collectives | None:
    """None where neither the profile nor a bundled table knows, nor anybody how GPUs of its device are linked."""
    device = device_like(profile.device)
    fabric = None if device is None else FABRICS.get(device.name)
    if "collective" in profile.tables:
        return Collectives(profile.table("collective"), f"profile {profile.name}", fabric, word=source_of(profile))
    path = None if device is None else _BUNDLED / f"{device.name}.parquet"
    if path is not None and path.is_file():
        table = pl.read_parquet(path)
        return Collectives(table, ", ".join(table["source"].unique().sort()), fabric)
    return None if fabric is None else Collectives(None, f"links of {profile.device}", fabric)


def bundled_collectives() -> list[tuple[str, str, str, str]]:
    """(device, operations, between how many GPUs, from where) of every bundled table."""
    rows = []
    for path in sorted(_BUNDLED.glob("*.parquet")):
        by_operation = pl.read_parquet(path).group_by("source", "operation").agg(pl.col("ranks").unique().sort())
        by_ranks = by_operation.sort("source", "operation").group_by("source", "ranks", maintain_order=True)
        for (source, ranks), part in by_ranks:
            rows.append((path.stem, ", ".join(part["operation"]), ", ".join(map(str, ranks)), str(source)))
    return rows
