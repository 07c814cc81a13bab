"""Part 2: the calibration of the campaign's model, on a grid that fits its time; a killed one goes on.

The host's overhead is then that of the engine: what its steps take beyond the decoder's is added (`campaign.serving`).
"""

from __future__ import annotations

from dataclasses import replace

import polars as pl

from calibrate.microbench.grid import Grid, quick_grid, short_cuda_grid
from calibrate.microbench.measure import measure
from calibrate.model import load_model
from calibrate.profile import Profile
from campaign import serving
from campaign.work import BLOCK_SIZE, Work, free_memory


def grid_of(work: Work) -> Grid:
    return short_cuda_grid() if work.on_gpu else replace(quick_grid(), graph_sizes=[1, 2, 4, 8])


def run(work: Work) -> None:
    if "serving" in work.found:
        return
    profile = measure(
        load_model(work.model),
        device=work.device,
        tp=1,
        threads=1,
        grid=grid_of(work),
        block_size=BLOCK_SIZE,
        out=work.profile,
        force=True,
    )
    free_memory(work.device)
    found = serving.beyond_the_decoder(work, profile, grid_of(work).longest_context)
    serving.add(profile, found)
    profile.save(work.profile, force=True)
    add_power(work)
    work.found["serving"] = [{"sequences": n, "seconds": seconds} for n, seconds in found.items()]
    points = {name: len(table) for name, table in profile.tables.items()}
    work.found.update(errors=profile.errors, points=points)


def add_power(work: Work) -> None:
    """Put what the part `power` measured into the profile, once there are both."""
    if (work.profile / "profile.json").is_file() and work.power.is_file():
        profile = Profile.load(work.profile)
        profile.tables["power"] = pl.read_parquet(work.power)
        profile.save(work.profile, force=True)
