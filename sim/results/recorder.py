"""Collects a run's rows in typed columns: no object per request or step is kept."""

from array import array
from struct import Struct
from typing import Any, Protocol

import numpy as np
import polars as pl

from sim.results.tables import REQUESTS, STEPS

_NOT_YET = float("nan")


class RequestRecorder:
    """The requests table, written by request_id. What is known beforehand comes as columns."""

    def __init__(self, prompt_tokens: np.ndarray, output_tokens: np.ndarray) -> None:
        """`prompt_tokens`, `output_tokens`: shape (requests,), integers."""
        count = len(prompt_tokens)
        self._prompt_tokens = prompt_tokens
        self._output_tokens = output_tokens
        self.arrival = array("d", [_NOT_YET]) * count
        self.first_scheduled = array("d", [_NOT_YET]) * count
        self.first_token = array("d", [_NOT_YET]) * count
        self.finish = array("d", [_NOT_YET]) * count
        self.replica = array("i", [-1]) * count
        self.cached_tokens = array("q", [0]) * count
        self.preemptions = array("i", [0]) * count
        self.failed: dict[int, str] = {}  # request_id → status, where it is neither finished nor unfinished

    def table(self) -> pl.DataFrame:
        """All requests in order of request_id, with the columns of `tables.REQUESTS`."""
        count = len(self._prompt_tokens)
        frame = pl.DataFrame(
            {
                "request_id": np.arange(count),
                "replica": np.asarray(self.replica),
                "prompt_tokens": self._prompt_tokens,
                "output_tokens": self._output_tokens,
                "cached_tokens": np.asarray(self.cached_tokens),
                "preemptions": np.asarray(self.preemptions),
            }
            | {
                name: pl.Series(np.asarray(getattr(self, name)), nan_to_null=True)
                for name in ("arrival", "first_scheduled", "first_token", "finish")
            }
        )
        status = pl.when(pl.col("finish").is_not_null()).then(pl.lit("finished")).otherwise(pl.lit("unfinished"))
        if self.failed:
            failed = pl.DataFrame(
                {"request_id": list(self.failed), "failed": list(self.failed.values())},
                schema={"request_id": pl.Int64, "failed": pl.String},
            )
            frame = frame.join(failed, on="request_id", how="left", maintain_order="left")
            status = pl.coalesce(pl.col("failed"), status)
        return with_latencies(frame.with_columns(status=status)).select(
            pl.col(name).cast(dtype) for name, dtype in REQUESTS.items()
        )


def with_latencies(frame: pl.DataFrame) -> pl.DataFrame:
    """Add ttft, tpot, e2e and queue (definitions in `tables.REQUESTS`)."""
    decoded = pl.col("output_tokens") - 1
    return frame.with_columns(
        ttft=pl.col("first_token") - pl.col("arrival"),
        tpot=pl.when(decoded > 0).then((pl.col("finish") - pl.col("first_token")) / decoded),
        e2e=pl.col("finish") - pl.col("arrival"),
        queue=pl.col("first_scheduled") - pl.col("arrival"),
    )


_CODES: dict[pl.DataType, str] = {pl.Float64(): "d", pl.Int64(): "q", pl.Int32(): "i"}
_ROW = Struct("=" + "".join(_CODES[dtype] for dtype in STEPS.values()))
_pack = _ROW.pack
_RECORD = np.dtype([(name, _CODES[dtype]) for name, dtype in STEPS.items()])


class StepPlan(Protocol):
    """What the steps table takes of a plan (`sim.engine.plan.Plan`)."""

    chunks: list[Any]  # each with its `tokens`
    decodes: int
    kv_tokens: int
    preempted: int


class StepRecorder:
    """The steps table, appended in the order in which steps end."""

    def __init__(self) -> None:
        self._rows = bytearray()  # one `_ROW` after another

    def append(
        self,
        replica: int,
        start: float,
        end: float,
        steps: int,
        plan: StepPlan,
        running: int,
        waiting: int,
        kv_blocks: int,
    ) -> None:
        """One row; the arguments are columns of `tables.STEPS`, and `plan` is what was computed."""
        chunks = plan.chunks
        self._rows += _pack(
            replica,
            start,
            end,
            steps,
            len(chunks),
            sum([chunk.tokens for chunk in chunks]) if chunks else 0,
            plan.decodes,
            plan.kv_tokens,
            running,
            waiting,
            kv_blocks,
            plan.preempted,
        )

    def take_table(self) -> pl.DataFrame:
        """With the columns of `tables.STEPS`, in order of (start, replica). The recorder is empty afterwards: millions
        of rows are not held twice for longer than it takes."""
        rows, self._rows = np.frombuffer(self._rows, dtype=_RECORD), bytearray()
        order = np.lexsort((rows["replica"], rows["start"]))
        return pl.DataFrame({name: rows[name][order] for name in STEPS}, schema=STEPS)
