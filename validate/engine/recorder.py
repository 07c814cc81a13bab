"""Writes down what a real engine does, in the simulator's tables."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from sim.engine.offload.moves import write_move
from sim.engine.plan import Plan
from sim.engine.request import Request
from sim.engine.scheduler import Scheduler
from sim.engine.session_accounts import sessions_table
from sim.engine.session_retention import SessionRetention
from sim.engine.speculative.batch import SpeculativeBatch
from sim.engine.speculative.step_events import write_step
from sim.results.recorder import EventRecorder, StepRecorder
from validate.engine.block_moves import Copied
from validate.recording import Lateness, Recording, request_table


class Recorder:
    """Collects plain numbers during the run; tables are made after it."""

    def __init__(self) -> None:
        self._requests: dict[int, Request] = {}
        self._rejected: set[int] = set()
        self._steps = StepRecorder()
        self._events = EventRecorder()
        self._lateness: list[float] = []
        self._forward = 0.0
        self._busy = 0.0
        self._count = 0
        self._replayed = 0
        self._copied: dict[str, float] = defaultdict(float)  # bytes, and seconds of the copies alone, by kind

    def added(self, request: Request, *, rejected: bool) -> None:
        self._requests[request.request_id] = request
        if rejected:
            self._rejected.add(request.request_id)

    def woke(self, *, due: float, now: float) -> None:
        """The engine was idle and waited for an arrival due at `due`."""
        self._lateness.append(now - due)

    def step(
        self,
        plan: Plan,
        scheduler: Scheduler,
        *,
        start: float,
        end: float,
        forward: float,
        copying: float | None,
        graph: bool,
        running: int,
        waiting: int,
    ) -> None:
        """One step, from the call of the scheduler (or the end of the step before) to the tokens in hand; `forward` is
        the decoder's part of it, `copying` what its copies took, if that is known, `graph` whether a captured graph was
        replayed.

        `running` and `waiting` are counted before the step's finished requests leave.
        """
        self._count += 1
        self._replayed += graph
        self._busy += end - start
        self._forward += forward
        self._steps.append(0, start, end, 1, plan, running, waiting, scheduler.blocks_held)
        self._events.of_step(0, start, plan, copying)
        self.sessions(scheduler.retention)

    def speculated(self, start: float, batch: SpeculativeBatch) -> None:
        """What the step that began at `start`, and has advanced, drafted and kept."""
        write_step(self._events, 0, start, batch, None)

    def copied(self, copied: Copied) -> None:
        """Blocks that were copied beside the steps."""
        kind = f"kv_{copied.move.kind}"
        write_move(self._events, 0, copied.move, copied.begun, copied.seconds)
        self._copied[f"{kind}_bytes"] += copied.bytes
        self._copied[f"{kind}_copy_seconds"] += copied.copying

    def sessions(self, retention: SessionRetention | None) -> None:
        """Which idle sessions lost their blocks since this was last told."""
        if retention is not None:
            retention.write_events(0, self._events)

    def recording(self, rows: list[dict[str, Any]], retention: SessionRetention | None) -> Recording:
        """The tables; `rows` is the whole trace, so requests that never arrived are in them too."""
        if retention is not None:
            answered = (request.finish for request in self._requests.values())
            retention.close(max((time for time in answered if time is not None), default=0.0))
            self.sessions(retention)
        return Recording(
            sessions=None if retention is None else sessions_table({0: retention.accounts}),
            requests=request_table(self._row(row) for row in rows),
            steps=self._steps.take_table(),
            events=self._events.take_table(),
            lateness=Lateness.of(self._lateness),
            engine={
                "steps": self._count,
                "graph_steps": self._replayed,
                "step_seconds": self._busy,
                **self._copied,
                "forward_seconds": self._forward,
            },
        )

    def _row(self, row: dict[str, Any]) -> dict[str, Any]:
        request_id = row["request_id"]
        given = {name: row[name] for name in ("request_id", "arrival", "prompt_tokens", "output_tokens")}
        request = self._requests.get(request_id)
        if request is None:
            return given | {"replica": -1, "cached_tokens": 0, "preemptions": 0, "status": "unfinished"}
        rejected = request_id in self._rejected
        return given | {
            "replica": -1 if rejected else 0,
            "arrival": request.arrival,
            "first_scheduled": request.first_scheduled,
            "first_token": request.first_token,
            "finish": request.finish,
            "cached_tokens": request.cached_tokens,
            "preemptions": request.preemptions,
            "status": "rejected" if rejected else "unfinished" if request.finish is None else "finished",
        }
