"""Collectives between 2 and 4 processes of this machine: what the measured table says of sizes that it does not hold.

    python benchmarks/collectives.py [--ranks 2,4] [--quick]

Measures a table with `simctl calibrate run --collectives`'s own code, holds sizes out, and prints for each operation
and number of ranks the prediction against the held-out measurement, in % and µs, and how far two passes over the same
points differ: no table can be nearer than that. With more ranks than processors they
take turns, so times beyond that are of this machine's scheduler as much as of its memory.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

import polars as pl
from machine import busy_seconds, cpu_name

from calibrate.microbench.collectives import collective_grid, measure_collectives


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", default="2,4")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    ranks = [int(part) for part in options.ranks.split(",")]
    busy = busy_seconds()
    with tempfile.TemporaryDirectory() as folder:
        grid = collective_grid("cpu", ranks, quick=options.quick)
        profile = measure_collectives("cpu", grid, Path(folder) / "collectives", force=False)
    assert profile.held_out is not None
    busy = busy_seconds() - busy
    version, load = profile.versions["torch"], os.getloadavg()[0]
    print(f"{cpu_name()}, gloo of torch {version}; the machine computed for {busy:.0f} s meanwhile, load {load:.1f}")
    points = profile.held_out.with_columns(
        pl.col("point").str.json_decode(dtype=pl.Struct(_POINT)).struct.unnest()
    ).sort("ranks", "operation", "bytes")
    print(f"{'operation':16}{'ranks':>6}{'bytes':>12}{'measured µs':>14}{'predicted µs':>14}{'off':>9}")
    for name, count, size, measured, predicted in points.select(
        "operation", "ranks", "bytes", "measured", "predicted"
    ).iter_rows():
        off = predicted / measured - 1
        print(f"{name:16}{count:>6}{size:>12,}{1e6 * measured:>14,.1f}{1e6 * predicted:>14,.1f}{off:>9.1%}")
    errors = profile.errors["collective"]
    print(
        f"{errors['held_out_points']:.0f} sizes held out of {errors['points']:.0f} measured: median error "
        f"{errors['held_out_median']:.1%}, 90th percentile {errors['held_out_p90']:.1%}"
    )
    print(
        f"the same points measured twice, in alternate rounds, differ by {errors['repeat_median']:.1%} in the median, "
        f"{errors['repeat_p90']:.1%} at the 90th percentile"
    )


_POINT = {"operation": pl.String, "ranks": pl.Int64, "bytes": pl.Int64}

if __name__ == "__main__":
    main()
