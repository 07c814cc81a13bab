"""CUDA graphs: capturing one decode step of a batch size, and replaying it (CUDA only)."""

from __future__ import annotations

from typing import Any

import torch

from calibrate.microbench.grid import Grid, StepShape, spread
from calibrate.microbench.timing import repeat, whole
from calibrate.microbench.workbench import Workbench

KERNEL_CLASS = "graph"
DEVICES = ("cuda",)


def points(grid: Grid) -> list[dict[str, Any]]:
    return [{"sequences": n} for n in grid.step_sequences]


def held_out(grid: Grid) -> list[dict[str, Any]]:
    return []


def measure(bench: Workbench, point: dict[str, Any]) -> list[tuple[dict[str, Any], list[float]]]:
    """Rows of phase "capture" and "replay". The graph's batch stays where it is: only its replay is timed."""
    shape = StepShape([], spread(point["sequences"], bench.grid.step_context))
    layout = bench.decoder.layout(bench.batch(shape))
    # A capture must find every library's workspace made, which a pass on a side stream does.
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        bench.decoder.forward(layout)
    torch.cuda.current_stream().wait_stream(side)

    graph = torch.cuda.CUDAGraph()

    def capture() -> None:
        with torch.cuda.graph(graph):
            bench.decoder.forward(layout)

    captured = whole(capture, bench.device)
    replayed = repeat(lambda: {"replay": whole(graph.replay, bench.device)}, bench.grid.budget)["replay"]
    return [({"phase": "capture"}, [captured]), ({"phase": "replay"}, replayed)]
