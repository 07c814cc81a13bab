"""The microbenchmarks, one a kernel class. A new one is a new file and a line in `MICROBENCHES`."""

from __future__ import annotations

from typing import Any, Protocol

from calibrate.microbench import attention, copy, dense, graph, launch, per_sequence, pruned, pruned_attention, step
from calibrate.microbench.grid import Grid
from calibrate.microbench.workbench import Workbench

Point = dict[str, Any]
# Further key columns of a row (such as the layer), and its samples: seconds of one call.
Row = tuple[dict[str, Any], list[float]]


class Microbench(Protocol):
    """Measures one kernel class. Points are JSON objects; `measure` gives one row a table row of the point."""

    KERNEL_CLASS: str

    @property
    def DEVICES(self) -> tuple[str, ...]: ...

    def points(self, grid: Grid) -> list[Point]: ...

    def held_out(self, grid: Grid) -> list[Point]: ...

    def measure(self, bench: Workbench, point: Point) -> list[Row]: ...


MICROBENCHES: tuple[Microbench, ...] = (
    dense,
    per_sequence,
    attention,
    pruned,
    pruned_attention,
    copy,
    launch,
    graph,
    step,
)
