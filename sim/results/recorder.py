"""Collects a run's rows in typed columns: no object per request or step is kept."""

from array import array
from struct import Struct
from typing import Any, Protocol

import numpy as np
import polars as pl

from sim.results.tables import EVENT_KINDS, EVENTS, REQUESTS, STEPS

_NOT_YET = float("nan")


class FinishedRequest(Protocol):
    """What the requests table takes of a request (`sim.engine.request.Request`)."""

    request_id: int
    first_scheduled: float | None
    first_token: float | None
    finish: float | None
    cached_tokens: int
    preemptions: int


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

    def finished(self, request: FinishedRequest) -> None:
        """It has its last token."""
        index = request.request_id
        assert request.first_scheduled is not None and request.first_token is not None and request.finish is not None
        self.first_scheduled[index] = request.first_scheduled
        self.first_token[index] = request.first_token
        self.finish[index] = request.finish
        self.cached_tokens[index] = request.cached_tokens
        self.preemptions[index] = request.preemptions

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
    """What the steps and events tables take of a plan (`sim.engine.plan.Plan`)."""

    chunks: list[Any]  # each with its `tokens`
    decodes: int
    kv_tokens: int
    preempted: int
    victims: Any  # requests
    resumed: Any
    swapped_out: Any  # each with its `host` blocks
    swapped_in: Any

    @property
    def scheduled(self) -> float: ...

    @property
    def recomputed(self) -> int: ...

    @property
    def missed(self) -> int: ...


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


_EVENT = Struct("=diiqdq")
_EVENT_RECORD = np.dtype(
    [("time", "d"), ("replica", "i"), ("kind", "i"), ("request_id", "q"), ("seconds", "d"), ("amount", "q")]
)
_KINDS = tuple(EVENT_KINDS)
_CODE = {kind: code for code, kind in enumerate(_KINDS)}


class EventRecorder:
    """The events table, appended in the order in which things happen."""

    def __init__(self) -> None:
        self._rows = bytearray()
        self._details: dict[int, str] = {}  # row → text, where there is one

    def append(
        self,
        time: float,
        replica: int,
        kind: str,
        *,
        request_id: int | None = None,
        seconds: float | None = None,
        amount: int | None = None,
        detail: str | None = None,
    ) -> None:
        """One row; the arguments are columns of `tables.EVENTS`, and `kind` is one of `tables.EVENT_KINDS`."""
        if detail is not None:
            self._details[len(self._rows) // _EVENT.size] = detail
        self._rows += _EVENT.pack(
            time,
            replica,
            _CODE[kind],
            -1 if request_id is None else request_id,
            _NOT_YET if seconds is None else seconds,
            -1 if amount is None else amount,
        )

    def of_step(self, replica: int, start: float, plan: StepPlan, copy_seconds: float | None = None) -> None:
        """Of a step that began at `start`: whom it preempted and admitted again, what it computed again and copied."""
        if plan.victims or plan.resumed:
            self.of_schedule(replica, plan)
        if plan.recomputed:
            self.append(start, replica, "recomputed", amount=plan.recomputed)
        if plan.missed:
            self.append(start, replica, "missed", amount=plan.missed)
        if plan.swapped_out or plan.swapped_in:
            blocks = sum(len(copy.host) for copies in (plan.swapped_out, plan.swapped_in) for copy in copies)
            ways = [way for way, copies in (("out", plan.swapped_out), ("in", plan.swapped_in)) if copies]
            self.append(start, replica, "copy", seconds=copy_seconds, amount=blocks, detail=" and ".join(ways))

    def of_schedule(self, replica: int, plan: StepPlan) -> None:
        """Whom the scheduler preempted and admitted again when it made the plan."""
        for kind, requests in (("preempted", plan.victims), ("resumed", plan.resumed)):
            for request in requests:
                self.append(plan.scheduled, replica, kind, request_id=request.request_id, amount=request.repeats_until)

    def take_table(self) -> pl.DataFrame:
        """With the columns of `tables.EVENTS`, in order of (time, replica). The recorder is empty afterwards."""
        rows, self._rows = np.frombuffer(self._rows, dtype=_EVENT_RECORD), bytearray()
        details, self._details = self._details, {}
        counts = {name: pl.Series(rows[name]) for name in ("request_id", "amount")}
        table = pl.DataFrame(
            {
                "time": rows["time"],
                "replica": rows["replica"],
                "kind": np.array(_KINDS)[rows["kind"]],
                "seconds": pl.Series(rows["seconds"], nan_to_null=True),
                "detail": pl.Series(list(map(details.get, range(len(rows)))), dtype=pl.String),
                **{name: column.set(column < 0, None) for name, column in counts.items()},
            }
        )
        columns = [pl.col(name).cast(kind) for name, kind in EVENTS.items()]
        return table.select(columns).sort("time", "replica", maintain_order=True)
