"""Copies between host and device memory, pageable and pinned; on a CPU from host to host, and named so.

Sources and targets rotate over a ring of buffers, so that a copy does not find its data in the processor's cache
(where a cache is larger than the ring, as some servers' last level is, the figure is that cache's).
"""

from __future__ import annotations

from typing import Any

import torch

from calibrate.microbench.grid import Grid
from calibrate.microbench.timing import repeat, whole
from calibrate.microbench.workbench import Workbench

KERNEL_CLASS = "copy"
DEVICES = ("cpu", "cuda")

_RING_BYTES = 1 << 28


def points(grid: Grid) -> list[dict[str, Any]]:
    return [{"bytes": size} for size in grid.copy_bytes]


def held_out(grid: Grid) -> list[dict[str, Any]]:
    return [{"bytes": size} for size in grid.held_out_copies]


def measure(bench: Workbench, point: dict[str, Any]) -> list[tuple[dict[str, Any], list[float]]]:
    size = point["bytes"]
    if bench.device.type == "cpu":
        ways = [("host_to_host", "pageable")]
    else:
        ways = [(way, memory) for way in ("host_to_device", "device_to_host") for memory in ("pageable", "pinned")]
    rows = []
    for direction, memory in ways:
        slots = max(1, min(64, _RING_BYTES // (2 * size)))
        host = torch.ones(slots, size, dtype=torch.uint8, pin_memory=memory == "pinned")
        other = torch.ones(slots, size, dtype=torch.uint8, device=bench.device)
        source, target = (other, host) if direction == "device_to_host" else (host, other)
        samples = _rotate(source, target, bench)
        rows.append(({"direction": direction, "memory": memory}, samples))
    return rows


def _rotate(source: torch.Tensor, target: torch.Tensor, bench: Workbench) -> list[float]:
    turn = 0

    def one_pass() -> dict[str, float]:
        nonlocal turn
        turn += 1
        into, out_of = target[turn % len(target)], source[turn % len(source)]
        return {"copy": whole(lambda: into.copy_(out_of, non_blocking=True), bench.device)}

    return repeat(one_pass, bench.grid.budget)["copy"]
