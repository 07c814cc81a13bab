"""The memory table: what the device's allocator holds, whenever that changes, but not at every step."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import numpy as np
import polars as pl

from sim.results.tables import MEMORY

_COLUMNS = list(MEMORY)[2:]  # behind time and replica
_RESERVED = _COLUMNS.index("reserved")


class MemoryRecorder:
    """One replica's rows, in order of time. A row holds until the next.

    There is one where `reserved` changes, and one where anything else does, but not within `every` seconds of the row
    before: then it is put off until they are over. So the rows do not depend on how often nothing new is told.
    """

    def __init__(self, replica: int, every: float) -> None:
        self._replica = replica
        self._every = every
        self._times = array("d")
        self._values = array("q")  # a row of `_COLUMNS` after another
        self._now: Sequence[int] = ()  # what was told last
        self._written: Sequence[int] = ()

    def observe(self, time: float, values: Sequence[int]) -> None:
        """From `time` on, the columns of `tables.MEMORY` behind the first two."""
        if self._now is not self._written and self._times[-1] + self._every < time:
            self._write(self._times[-1] + self._every, self._now)
        if tuple(values) == tuple(self._now):
            return
        self._now = values
        last = self._written
        if not last or values[_RESERVED] != last[_RESERVED] or time >= self._times[-1] + self._every:
            self._write(time, values)

    def take_table(self) -> pl.DataFrame:
        """With the columns of `tables.MEMORY`; what was put off comes last."""
        if self._now is not self._written:
            self._write(self._times[-1] + self._every, self._now)
        values = np.asarray(self._values).reshape(-1, len(_COLUMNS))
        columns = {"time": np.asarray(self._times), "replica": np.full(len(values), self._replica)}
        return pl.DataFrame(columns | dict(zip(_COLUMNS, values.T, strict=True)), schema=MEMORY)

    def _write(self, time: float, values: Sequence[int]) -> None:
        self._times.append(time)
        self._values.extend(values)
        self._now = self._written = values


def memory_table(recorders: Sequence[MemoryRecorder]) -> pl.DataFrame:
    """Of all replicas, in order of (time, replica)."""
    tables = [recorder.take_table() for recorder in recorders]
    return pl.concat(tables).sort("time", "replica", maintain_order=True)
