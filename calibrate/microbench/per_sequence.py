"""Kernels that run once a sequence: lm_head on its last token, and the sampler."""

from __future__ import annotations

from typing import Any

from calibrate.kernels.linear import product
from calibrate.kernels.sampling import greedy
from calibrate.microbench.grid import Grid
from calibrate.microbench.timing import repeat
from calibrate.microbench.workbench import Workbench

KERNEL_CLASS = "per_sequence"
DEVICES = ("cpu", "cuda")


def points(grid: Grid) -> list[dict[str, Any]]:
    return [{"sequences": n} for n in grid.sequences]


def held_out(grid: Grid) -> list[dict[str, Any]]:
    return [{"sequences": n} for n in grid.held_out_sequences]


def measure(bench: Workbench, point: dict[str, Any]) -> list[tuple[dict[str, Any], list[float]]]:
    def one_pass() -> dict[str, float]:
        hidden = bench.random(point["sequences"], bench.model.hidden)
        bench.sweep_cache(0)
        bench.timer.start()
        logits = product(hidden, bench.decoder.weights.lm_head, in_parts=False)[0]
        bench.timer.lap("lm_head")
        greedy(logits)
        bench.timer.lap("sampler")
        return bench.timer.seconds()

    return [({"layer": name}, seconds) for name, seconds in repeat(one_pass, bench.grid.budget).items()]
