"""Kernel launch: from the first of a number of empty-handed kernels to the end of the last (CUDA only)."""

from __future__ import annotations

from typing import Any

import torch

from calibrate.microbench.grid import Grid
from calibrate.microbench.timing import repeat, whole
from calibrate.microbench.workbench import Workbench

KERNEL_CLASS = "launch"
DEVICES = ("cuda",)


def points(grid: Grid) -> list[dict[str, Any]]:
    return [{"kernels": n} for n in (1, 10, 100, 1000)]


def held_out(grid: Grid) -> list[dict[str, Any]]:
    return [{"kernels": n} for n in (30, 300)]


def measure(bench: Workbench, point: dict[str, Any]) -> list[tuple[dict[str, Any], list[float]]]:
    cell = torch.zeros(1, device=bench.device)

    def launch_all() -> None:
        for _ in range(point["kernels"]):
            cell.add_(1)

    return [({}, repeat(lambda: {"launch": whole(launch_all, bench.device)}, bench.grid.budget)["launch"])]
