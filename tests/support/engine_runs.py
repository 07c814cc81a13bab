"""One engine by itself, whose clients may go and whose node may fail at given instants."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import polars as pl
from simpy.events import NORMAL

from sim.engine.clock import Clock
from sim.engine.config import EngineConfig
from sim.engine.pipelined import PipelinedEngine
from sim.engine.process import Engine
from sim.engine.request import Request
from sim.engine.step_costs import StepCosts
from sim.results.recorder import EventRecorder, StepRecorder


class EngineRun(NamedTuple):
    """What became of the requests, in order: (first scheduled, first token, finish), None where it was not."""

    times: list[tuple[float | None, float | None, float | None]]
    finished: list[int]  # request ids, in the order in which they finished
    steps: pl.DataFrame
    events: pl.DataFrame
    engine: Engine


def run_engine(
    trace: pl.DataFrame,
    config: EngineConfig,
    times: Any,
    *,
    leap: bool,
    aborts: Sequence[tuple[float, int]] = (),
    paces: Sequence[tuple[float, float]] = (),
    stop: float | None = None,
    costs: Callable[[EventRecorder], StepCosts | None] = lambda events: None,
) -> EngineRun:
    """`aborts` are (seconds after its arrival, request id), of which those that come too late do nothing; `paces`
    (instant, times slower); at `stop` it crashes."""
    clock, steps, events = Clock(), StepRecorder(), EventRecorder()
    finished: list[int] = []
    kind = PipelinedEngine if config.pipeline_parallel > 1 else Engine
    engine = kind(
        clock,
        0,
        config,
        times,
        steps,
        events,
        lambda request: finished.append(request.request_id),
        costs=costs(events),
        leap=leap,
    )
    requests = [Request(*row) for row in trace.iter_rows()]

    def at(time: float, call: Callable[[], None]) -> None:
        clock.at(time, NORMAL).callbacks = [lambda _: call()]

    gone: set[int] = set()

    def arrive(request: Request) -> None:
        if stop is None or request.arrival < stop:
            engine.submit(request)

    def abort(request: Request) -> None:
        over = stop is not None and clock.now >= stop
        if request.request_id not in gone and request.finish is None and not over:
            gone.add(request.request_id)
            engine.abort(request)

    for request in requests:
        at(request.arrival, lambda request=request: arrive(request))
    for after, number in aborts:
        if number < len(requests):
            request = requests[number]
            at(request.arrival + after, lambda request=request: abort(request))
    for time, factor in paces:
        at(time, lambda factor=factor: engine.slow(factor))
    if stop is not None:
        at(stop, engine.stop)
    clock.run_out()
    last = max((request.finish for request in requests if request.finish is not None), default=0.0)
    engine.close(last)
    return EngineRun(
        [
            (None, None, None)
            if request.request_id in gone
            else (request.first_scheduled, request.first_token, request.finish)
            for request in requests
        ],
        finished,
        steps.take_table(),
        events.take_table(),
        engine,
    )


def left_behind(engine: Engine) -> int:
    """Blocks, seats, places in queues and host blocks that the engine still gives to somebody."""
    schedulers = getattr(engine.scheduler, "_schedulers", [engine.scheduler])
    left = 0
    for one in schedulers:
        left += one.running_count + one.waiting_count + one.pool.held + one.swap.total - one.swap.free
        left += len(one._ended) + len(one._prefilling) + one._batch.count + abs(one._batch.kv_tokens)
        left += sum(map(abs, one._batch.at_edge)) + len(one._batch._unsettled)
    return left
