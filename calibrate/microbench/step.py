"""Whole decoder steps, from a batch of Python lists to Python tokens.

On the grid they give the host's overhead: what a step takes beyond its kernels. Held-out ones, of mixed batches, tell
how well the finished profile predicts.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from calibrate.microbench.grid import Grid, StepShape, spread
from calibrate.microbench.timing import repeat, whole
from calibrate.microbench.workbench import Workbench

KERNEL_CLASS = "step"
DEVICES = ("cpu", "cuda")

# The overhead is a small difference of two measured times, so this one is measured longer.
_BUDGETS = 6


def points(grid: Grid) -> list[dict[str, Any]]:
    """Decodes alone, or with one prefill that brings the extra tokens."""
    shapes = []
    for sequences in grid.step_sequences:
        for extra in grid.step_extra:
            prefills = [(extra + 1, 0)] if extra else []
            decodes = sequences - len(prefills)
            shapes.append(StepShape(prefills, spread(decodes, grid.step_context) if decodes else []))
    shapes += [StepShape([], spread(n, grid.step_context)) for n in grid.step_decodes if n not in grid.step_sequences]
    return [asdict(shape) for shape in shapes]


def held_out(grid: Grid) -> list[dict[str, Any]]:
    return [asdict(shape) for shape in grid.held_out_steps]


def measure(bench: Workbench, point: dict[str, Any]) -> list[tuple[dict[str, Any], list[float]]]:
    shape = StepShape(**point)

    batch = bench.batch(shape)

    def one_pass() -> dict[str, float]:
        fresh = bench.fresh_tokens(batch)
        return {"step": whole(lambda: bench.decoder.step(fresh), bench.device)}

    return [({}, repeat(one_pass, _BUDGETS * bench.grid.budget)["step"])]
