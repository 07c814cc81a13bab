"""Collective operations between processes of this machine (gloo), or between its GPUs (NCCL), into a profile's table.

The ranks are processes of their own, started once for each number of them. Points are visited in shuffled order, all
of them once a round, and finished ones are kept on disk at once, as in `calibrate.microbench.measure`.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import polars as pl
import torch

from calibrate.assemble import held_out_errors
from calibrate.collective_law import Collectives
from calibrate.microbench.collective_rank import Point, run_rank
from calibrate.microbench.journal import Journal, Record
from calibrate.microbench.measure import machine_facts, new_profile
from calibrate.profile import KEYS, Profile
from ground.errors import UserError
from ground.folder import refuse_existing
from ground.progress import progress_bar

OPERATIONS = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "send_recv")
_SCHEMA = {
    "operation": pl.String,
    "ranks": pl.Int64,
    "bytes": pl.Int64,
    "seconds": pl.Float64,
    "p10": pl.Float64,
    "p90": pl.Float64,
    "samples": pl.Int64,
}
_JUDGED = {"kernel_class": pl.String, "point": pl.String, "measured": pl.Float64, "predicted": pl.Float64}
# What engines call it: their own all-reduce on GPUs is another.
_TABLE_NAMES = {"cuda": {"all_reduce": "all_reduce_nccl"}}


@dataclass(frozen=True)
class CollectiveGrid:
    """`sizes` are bytes of one rank's input, `held_out` sizes between them that only judge the law."""

    ranks: Sequence[int]
    sizes: Sequence[int]
    held_out: Sequence[int]
    rounds: int = 10  # many and short: a neighbour's burst of work then falls on few samples of each point
    budget: float = 0.02  # seconds for one point in one round
    operations: Sequence[str] = OPERATIONS

    def points(self, *, held_out: bool) -> list[Point]:
        return [
            Point(name, ranks, size)
            for ranks in self.ranks
            for name in self.operations
            if name != "send_recv" or ranks == 2
            for size in (self.held_out if held_out else self.sizes)
        ]


def collective_grid(device: str, ranks: Sequence[int], *, quick: bool) -> CollectiveGrid:
    """From 256 bytes to 64 MiB between processes, 512 MiB between GPUs, by factors of four; held out is three quarters
    of every other size."""
    last = (13 if quick else 26) if device == "cpu" else (21 if quick else 29)
    sizes = [2**k for k in range(8, last + 1, 2)]
    if sizes[-1] != 2**last:
        sizes.append(2**last)
    held_out = [3 * size // 4 for size in sizes[2::2]]
    return CollectiveGrid(tuple(ranks), sizes, held_out, rounds=2 if quick else 10, budget=0.01 if quick else 0.02)


def measure_collectives(device: str, grid: CollectiveGrid, out: Path, *, force: bool) -> Profile:
    """Measure and write the table `collective` of the profile in the folder `out`, beside what it holds; where there is
    none, one of no model is made.

    Raises:
        UserError: fewer GPUs than ranks, `out` is no profile or has such a table (without `force`), a rank ended
            before its time, or an unfinished calibration differs in settings.
    """
    if device == "cuda" and max(grid.ranks) > torch.cuda.device_count():
        raise UserError(f"--ranks {max(grid.ranks)}: torch finds {torch.cuda.device_count()} GPUs; expected one a rank")
    facts = machine_facts(device)
    is_profile = (out / "profile.json").is_file()
    profile = (
        Profile.load(out)
        if is_profile
        else new_profile(out.name, device, facts, model=None, tp=1, dtype="float32", threads=1)
    )
    if is_profile and "collective" in profile.tables and not force:
        raise UserError(f"{out}: holds a table of collectives; choose another profile or pass --force")
    if not is_profile:
        refuse_existing(out, force=force)
    partial = out.parent / f".{out.name}.collectives"
    journal = Journal(partial, facts | {"kind": device, "grid": asdict(grid)})
    try:
        _measure(device, grid, journal)
    finally:
        journal.close()
    table, between = (
        _table([record for record in journal.records if record["held_out"] == is_held_out], device)
        for is_held_out in (False, True)
    )
    profile.tables["collective"] = table.sort(KEYS["collective"])
    held_out = judged(table, between)
    errors = errors_of(len(table), held_out) | repeat_errors(journal.records, device)
    profile.errors = {**profile.errors, "collective": errors}
    if profile.held_out is not None:
        held_out = pl.concat([profile.held_out.filter(pl.col("kernel_class") != "collective"), held_out])
    profile.held_out = held_out
    profile.save(out, force=True)
    shutil.rmtree(partial)
    return profile


def judged(table: pl.DataFrame, held_out: pl.DataFrame) -> pl.DataFrame:
    """The points held out as in `Profile.held_out`, each with what the law of `table` says."""
    law = Collectives(table, "the table")
    rows = [
        ("collective", json.dumps({"operation": name, "ranks": ranks, "bytes": size}), measured, predicted)
        for name, ranks, size, measured in held_out.select("operation", "ranks", "bytes", "seconds").iter_rows()
        for predicted in (law.seconds(name, ranks, size),)
    ]
    return pl.DataFrame(rows, schema=_JUDGED, orient="row")


def errors_of(points: int, judged_points: pl.DataFrame) -> dict[str, float]:
    """As in `Profile.errors`, of so many points on the grid."""
    return {"points": float(points), **held_out_errors(judged_points)}


def repeat_errors(records: Sequence[Record], device: str) -> dict[str, float]:
    """How far two passes over the same points differ, the even rounds from the odd ones: `repeat_median`, `repeat_p90`.

    No law can be nearer to what was measured than the measurement is to itself. Nothing where there was one round.
    """
    passes = [
        _table([record for record in records if json.loads(record["visit"])[2] % 2 == parity], device)
        for parity in (0, 1)
    ]
    both = passes[0].join(passes[1], on=["operation", "ranks", "bytes"])
    if both.is_empty():
        return {}
    apart = ((both["seconds"] - both["seconds_right"]).abs() / both["seconds_right"]).to_numpy()
    return {"repeat_median": float(np.median(apart)), "repeat_p90": float(np.percentile(apart, 90))}


def _table(records: Sequence[Record], device: str) -> pl.DataFrame:
    """A row a point; `seconds` is the median of its samples on GPUs, on a CPU their least: other processes' turns,
    which are no part of what the machine can do, only ever make a sample longer."""
    samples: dict[Point, list[float]] = {}
    for record in records:
        samples.setdefault(Point(*record["point"]), []).extend(record["samples"])
    rows = []
    for point, own in sorted(samples.items()):
        p10, middle, p90 = (float(value) for value in np.percentile(own, [10, 50, 90]))
        rows.append((*point, min(own) if device == "cpu" else middle, p10, p90, len(own)))
    table = pl.DataFrame(rows, schema=_SCHEMA, orient="row")
    return table.with_columns(pl.col("operation").replace(_TABLE_NAMES.get(device, {})))


def _measure(device: str, grid: CollectiveGrid, journal: Journal) -> None:
    visits = [
        (point, is_held_out, number)
        for number in range(grid.rounds)
        for is_held_out in (False, True)
        for point in grid.points(held_out=is_held_out)
    ]
    random.Random(0).shuffle(visits)
    done = {record["visit"] for record in journal.records}
    with progress_bar() as bar:
        task = bar.add_task("collectives", total=len(visits), completed=len(done), note="")
        for ranks in grid.ranks:
            ahead = [visit for visit in visits if visit[0].ranks == ranks and _key(visit) not in done]
            bar.update(task, note=f"{ranks} ranks")
            results = _run_ranks(ranks, device, [point for point, _, _ in ahead], grid.budget) if ahead else iter(())
            for visit, (point, samples) in zip(ahead, results, strict=True):
                assert visit[0] == point
                journal.append({"visit": _key(visit), "held_out": visit[1], "point": point, "samples": samples})
                bar.advance(task)


def _key(visit: tuple[Point, bool, int]) -> str:
    return json.dumps(visit)


def _run_ranks(ranks: int, device: str, points: Sequence[Point], budget: float) -> Iterator[tuple[Point, list[float]]]:
    """Start so many processes; gives what they time, as it comes."""
    context = get_context("spawn")
    results = context.SimpleQueue()
    with tempfile.TemporaryDirectory() as folder:
        meeting = os.path.join(folder, "meeting")
        processes = [
            context.Process(target=run_rank, args=(rank, ranks, device, meeting, points, budget, results), daemon=True)
            for rank in range(ranks)
        ]
        try:
            for process in processes:
                process.start()
            for _ in points:
                while results.empty():
                    processes[0].join(0.01)
                    for rank, process in enumerate(processes):
                        if process.exitcode:
                            raise UserError(f"rank {rank} of {ranks} ended with status {process.exitcode}")
                yield results.get()
            for process in processes:
                process.join()
        finally:
            for process in processes:
                if process.is_alive():
                    process.terminate()
