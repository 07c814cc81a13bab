"""The simulated engine whose layers lie on several stages: several batches are under way at once.

What vLLM V1 does (`v1/engine/core.py`, `step_with_batch_queue`): while fewer batches are in flight than there are
stages it schedules another; where none can be formed, or there is no room, it waits until the oldest has come out of
the last stage, and whoever arrives meanwhile waits too.
"""

from collections import deque
from collections.abc import Generator, Sequence
from typing import Protocol, cast

import numpy as np
import simpy

from calibrate.skew import Spread
from sim.engine.config import EngineConfig
from sim.engine.decode_batch import DecodeBatch
from sim.engine.gauge import Gauge
from sim.engine.pipeline_leap import MicroBatch, PipelineLeap, Stages, plan_leap
from sim.engine.pipeline_scheduler import PipelineScheduler
from sim.engine.plan import Plan
from sim.engine.process import Engine


class StageTimes(Protocol):
    """What it asks of `calibrate.pipeline_latency.PipelineLatency`."""

    def stages(
        self, prefills: Sequence[tuple[int, int]], decodes: int, kv_tokens: int, spread: Spread | None = None
    ) -> list[float]:
        """Seconds on each stage of one batch, which is not empty."""

    def stage_runs(self, decodes: int, kv_tokens: int, steps: int, spread: Spread | None = None) -> list[np.ndarray]:
        """The same of `steps` decode steps in a row, each (steps,), bit for bit what `stages` gives."""

    def sends(self, prefill_tokens: int, decodes: int) -> float:
        """Seconds until what a stage computed has come to the next."""


class PipelinedEngine(Engine):
    """The arguments are an `Engine`'s; `step_times` are `StageTimes` too, and there are no `costs`."""

    def _make_scheduler(self, config: EngineConfig, spread: bool) -> PipelineScheduler:
        self._depth = config.pipeline_parallel
        self._size = config.block_size
        self._stages = Stages(self._depth)
        self._flight: deque[MicroBatch] = deque()  # oldest first
        self._round: PipelineLeap | None = None  # under way
        self._calm = 0  # batches in a row that were scheduled while nothing changed
        return PipelineScheduler(config, spread=spread)

    @property
    def _stage_times(self) -> StageTimes:
        return cast(StageTimes, self._step_times)

    @property
    def gauge(self) -> Gauge:
        """What it says of itself now: the same whether it leaps or takes every step."""
        scheduler, leap = self.scheduler, self._round
        held = scheduler.blocks_held + (0 if leap is None else leap.blocks_before(self._clock.now))
        return Gauge(scheduler.waiting_count, scheduler.running_count, held / self._blocks)

    def _hear(self, matters: bool) -> None:
        if self._idle:
            super()._hear(matters)
        elif matters:
            self._cut()

    def stop(self) -> None:
        """Its process ends: what it has never finishes, and what is in the pipeline never comes out."""
        self._clock.abandon(self._wake)
        self._alarm.stop()
        if (leap := self._round) is not None:
            self._round = None
            leap.entries = leap.entries_before(self._clock.now)
            self._take(leap)

    def _cut(self) -> None:
        """Something changed, which is acted on where the next batch comes out of the pipeline."""
        self._calm = 0
        if (leap := self._round) is not None:
            leap.entries = leap.entries_before(self._clock.now)
            self._wake_at(leap.end)

    def _run(self) -> Generator[simpy.Event, None, None]:
        clock, scheduler, flight = self._clock, self.scheduler, self._flight
        yield self._wake
        while True:
            plan = scheduler.schedule(clock.now) if len(flight) < self._depth else None
            if plan is not None:
                works = plan.decodes or plan.chunks
                self._launch(plan)
                if not works:  # it only preempts
                    self._come_out(flight.pop())
                if (works and len(flight) < self._depth) or not flight:
                    continue
            if not flight:
                yield self._wait_for_work()
                continue
            leap = self._round = self._plan_leap() if self._leap else None
            yield self._wait_until(flight[0].end if leap is None else leap.end)
            if leap is not None:
                self._round = None
                self._take(leap)
            self._come_out(flight.popleft())

    _run_ahead = _run  # with asynchronous scheduling it does the same; only the host's part is hidden

    def _launch(self, plan: Plan) -> None:
        times, now = self._stage_times, self._clock.now
        start = end = now
        if plan.decodes or plan.chunks:
            prefills = [(chunk.tokens, chunk.start) for chunk in plan.chunks]
            tokens = sum(new for new, _ in prefills)
            seconds = times.stages(prefills, plan.decodes, plan.kv_tokens, plan.spread)
            seconds = [self._wanted_pace * own for own in seconds]
            start, end = self._stages.run(now, seconds, times.sends(tokens, plan.decodes))
        self.scheduler.advance(plan)
        changes = plan.chunks or plan.joined or plan.preempted or plan.starved or plan.ending or plan.first_tokens
        self._calm = 0 if changes else self._calm + 1
        self._flight.append(MicroBatch(plan, start, end))

    def _come_out(self, done: MicroBatch) -> None:
        """A batch has passed all stages."""
        scheduler, now, plan = self.scheduler, self._clock.now, done.plan
        running, waiting = scheduler.running_count, scheduler.waiting_count
        self._let_all_go(plan)
        finished = scheduler.complete(plan, now)
        self._steps.append(self._replica, done.start, now, 1, plan, running, waiting, scheduler.blocks_held)
        if (plan.chunks or plan.preempted) and (plan.missed or plan.recomputed or plan.victims or plan.resumed):
            self._events.of_step(self._replica, done.start, plan, 0.0)
        for request in finished:
            self._on_finish(request)

    def _let_all_go(self, done: Plan) -> None:
        """Before it is looked who has finished those leave whose clients have gone; what is in flight computes them all
        the same."""
        in_flight = [done, *(one.plan for one in self._flight)]
        for request in list(self._aborted):
            self._let_go([request], next((plan for plan in in_flight if request in plan.ending), done))

    def _plan_leap(self) -> PipelineLeap | None:
        """Nothing changes before somebody finishes if nothing did while all that is in flight was scheduled."""
        scheduler, flight = self.scheduler, self._flight
        if self._calm < len(flight) or scheduler.prefills or self._aborted:
            return None
        blocks = scheduler.blocks_before_admission([one.plan for one in flight])
        if blocks is None:
            return None
        batches = [scheduler.batch(one.plan) for one in flight]
        return plan_leap(flight, batches, self._stages, blocks, self._size, self._seconds_of)

    def _seconds_of(self, batch: DecodeBatch, times: int) -> tuple[Sequence[Sequence[float]], float]:
        spread = None if batch.spread is None else batch.spread.at(batch.step, batch.count)
        runs = self._stage_times.stage_runs(batch.count, batch.kv_tokens, times, spread)
        return (self._wanted_pace * np.stack(runs, axis=1)).tolist(), self._stage_times.sends(0, batch.count)

    def _take(self, leap: PipelineLeap) -> None:
        """The leap is over: the batches went round as often as it says."""
        scheduler = self.scheduler
        plans, rows = [], []
        for index, one in enumerate(self._flight):
            plan = one.plan
            if leap.left(index):
                rows.append((one.end, one.start, 1, plan))
                made = leap.made(index)
                if len(made) > 1:  # the last is still in flight
                    first = scheduler.next_decodes(scheduler.batch(plan))
                    rows.append((made[-2][1], made[0][0], len(made) - 1, first))
                plan = scheduler.go_round(plan, len(made))
            plans.append(plan)
        running, waiting, held = scheduler.running_count, scheduler.waiting_count, scheduler.blocks_held
        for end, start, steps, plan in sorted(rows, key=lambda row: row[0]):
            self._steps.append(self._replica, start, end, steps, plan, running, waiting, held)
        self._stages.free = leap.free()
        self._flight.clear()
        self._flight.extend(leap.flight(plans))
