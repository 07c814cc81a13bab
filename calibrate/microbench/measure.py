"""One calibration from begin to end: every point in every round, in shuffled order, into a profile."""

from __future__ import annotations

import json
import platform
import random
import shutil
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from calibrate.assemble import assemble
from calibrate.microbench.grid import Grid
from calibrate.microbench.journal import Journal
from calibrate.microbench.registry import MICROBENCHES, Microbench, Point
from calibrate.microbench.workbench import Workbench
from calibrate.model import ModelShape
from calibrate.profile import Profile, Provenance
from ground.errors import UserError
from ground.progress import progress_bar

_SEED = 0


@dataclass(frozen=True)
class Visit:
    """One point, measured once."""

    bench: Microbench
    point: Point
    held_out: bool
    round: int

    @property
    def key(self) -> str:
        return json.dumps([self.bench.KERNEL_CLASS, self.held_out, self.round, self.point])


@torch.inference_mode()
def measure(
    model: ModelShape, *, device: str, tp: int, threads: int, grid: Grid, block_size: int, out: Path, force: bool
) -> Profile:
    """Measure a rank of `model` on this machine's `device` and save the profile as the folder `out`.

    Points are visited in shuffled order, all of them once a round: a disturbance of the machine falls on one round of
    some points and the medians over the rounds pass it by. Finished points lie in a hidden folder beside `out`; a
    calibration that was killed goes on from there.

    Raises:
        UserError: the device is not there, `out` cannot be written, or an unfinished calibration differs in settings.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch finds no CUDA device here; expected one, or --device cpu")
    if out.exists() and not force and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: exists and is not an empty folder; choose another or pass --force")
    torch.set_num_threads(threads)
    torch.manual_seed(_SEED)
    machine = machine_facts(device)
    settings = machine | {
        "model": repr(model),
        "tp": tp,
        "threads": threads,
        "block_size": block_size,
        "grid": grid.as_json(),
    }
    bench = Workbench(model.shard(tp), grid, device, block_size, _SEED)
    partial = out.parent / f".{out.name}.measuring"
    journal = Journal(partial, settings)
    visits = _visits(grid, device)
    done = {record["visit"] for record in journal.records}
    with progress_bar() as bar:
        task = bar.add_task(f"calibrating {model.name}", total=len(visits), completed=len(done), note="")
        for visit in visits:
            if visit.key in done:
                continue
            bar.update(task, note=visit.bench.KERNEL_CLASS)
            rows = [{"columns": columns, "samples": samples} for columns, samples in _run(visit, bench)]
            journal.append(
                {
                    "visit": visit.key,
                    "kernel_class": visit.bench.KERNEL_CLASS,
                    "held_out": visit.held_out,
                    "point": visit.point,
                    "rows": rows,
                }
            )
            bar.advance(task)
    journal.close()
    dtype = str(bench.dtype).removeprefix("torch.")
    profile = new_profile(out.name, device, machine, model=model, tp=tp, dtype=dtype, threads=threads)
    profile.block_size, profile.grid = block_size, grid.as_json()
    assemble(profile, journal.records)
    profile.save(out, force=force)
    shutil.rmtree(partial)
    return profile


def new_profile(
    name: str, device: str, machine: dict[str, Any], *, model: ModelShape | None, tp: int, dtype: str, threads: int
) -> Profile:
    """A profile measured now on this machine, of which `machine_facts` says `machine`; its tables are yet to come."""
    return Profile(
        name=name,
        device=machine["device"],
        model=model,
        tp=tp,
        dtype=dtype,
        provenance=Provenance("measured", f"measured by simctl calibrate on {machine['device']}", "the measurer's own"),
        tables={},
        device_memory=torch.cuda.get_device_properties(0).total_memory if device == "cuda" else None,
        driver=machine["driver"],
        versions=machine["versions"],
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        threads=threads,
    )


def _visits(grid: Grid, device: str) -> list[Visit]:
    """Every round holds every point once, in an order of its own (the same in every run)."""
    visits = []
    for number in range(grid.rounds):
        in_round = [
            Visit(bench, point, held_out, number)
            for bench in MICROBENCHES
            if device in bench.DEVICES
            for held_out, points in ((False, bench.points(grid)), (True, bench.held_out(grid)))
            for point in points
        ]
        random.Random(number).shuffle(in_round)
        visits += in_round
    return visits


def _run(visit: Visit, bench: Workbench) -> list[tuple[dict[str, Any], list[float]]]:
    try:
        return visit.bench.measure(bench, visit.point)
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"{visit.bench.KERNEL_CLASS} at {visit.point}: the device has not enough memory for {bench.model.name}"
        ) from error


def machine_facts(device: str) -> dict[str, Any]:
    """What a profile says of the machine: device, driver and versions."""
    versions = {"simctl": version("simctl"), "torch": torch.__version__, "python": platform.python_version()}
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        versions["cuda"] = torch.version.cuda or ""
        return {"device": properties.name, "driver": _cuda_driver(), "versions": versions}
    return {"device": _cpu_name(), "driver": f"{platform.system()} {platform.release()}", "versions": versions}


def _cuda_driver() -> str:
    """Version of the kernel driver, as it states it itself; empty where it does not."""
    path = Path("/proc/driver/nvidia/version")
    return path.read_text(encoding="utf-8").splitlines()[0] if path.is_file() else ""


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
