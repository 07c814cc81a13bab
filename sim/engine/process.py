"""The simulated engine: one SimPy process that drives a scheduler with predicted step times."""

from collections.abc import Callable, Generator, Sequence
from typing import Protocol

import numpy as np
import simpy

from sim.engine.clock import FIRST_STEP_PRIORITY, Clock
from sim.engine.config import EngineConfig
from sim.engine.request import Request
from sim.engine.scheduler import Plan, Scheduler
from sim.results.recorder import StepRecorder


class StepTimes(Protocol):
    """What the engine asks of `calibrate.latency.StepLatency`."""

    def step(self, prefills: Sequence[tuple[int, int]], decodes: int, kv_tokens: int) -> float:
        """Seconds of one step; prefills are (new tokens, tokens already cached). It may have neither kind of work."""

    def decode_run(self, decodes: int, kv_tokens: int, steps: int) -> np.ndarray:
        """Seconds of each of `steps` decode steps in a row, bit for bit what `step` gives; a new array, (steps,)."""


class Engine:
    """One replica. `submit` hands it a request; `on_finish` is told of every finished one.

    Where nothing can change the batch, many decode steps are one event (a leap), whose instants are the running sum
    of the step times. An arrival meanwhile cuts the leap at the next boundary, where a real engine would see it.
    """

    def __init__(
        self,
        clock: Clock,
        replica: int,
        config: EngineConfig,
        step_times: StepTimes,
        steps: StepRecorder,
        on_finish: Callable[[Request], None],
        *,
        leap: bool = True,
    ) -> None:
        self.scheduler = Scheduler(config)
        self._clock = clock
        self._replica = replica
        self._priority = FIRST_STEP_PRIORITY + replica
        self._step_times = step_times
        self._steps = steps
        self._on_finish = on_finish
        self._leap = leap
        self._idle = True
        self._ends: np.ndarray | None = None  # the boundaries of the leap under way, shape (steps,)
        self._leapt = 0  # steps of it that will be taken
        self._wake: simpy.Event = clock.event()
        clock.process(self._run())

    def submit(self, request: Request) -> None:
        matters = self.scheduler.add(request)
        if self._idle:
            self._idle = False
            self._wake_at(self._clock.now)
        elif matters and self._ends is not None:
            self._cut_leap(self._ends)

    def _run(self) -> Generator[simpy.Event, None, None]:
        clock, scheduler = self._clock, self.scheduler
        yield self._wake
        while True:
            start = clock.now
            plan = scheduler.schedule(start)
            if plan is None:
                self._idle = True
                self._wake = clock.event()
                yield self._wake
                continue
            self._begin(plan, start)
            yield self._wake
            steps, self._ends = self._leapt, None
            running, waiting = scheduler.running_count, scheduler.waiting_count
            finished = scheduler.finish(plan, clock.now, steps)
            self._steps.append(
                self._replica,
                start,
                clock.now,
                steps,
                len(plan.chunks),
                sum(chunk.tokens for chunk in plan.chunks),
                plan.decodes,
                plan.kv_tokens,
                running,
                waiting,
                scheduler.blocks_held,
                plan.preempted,
            )
            for request in finished:
                self._on_finish(request)

    def _begin(self, plan: Plan, start: float) -> None:
        """Place the event at which the step, or the leap, ends."""
        self._leapt = self.scheduler.horizon(plan) if self._leap else 1
        if plan.chunks or not plan.decodes:  # without either it only preempts
            prefills = [(chunk.tokens, chunk.start) for chunk in plan.chunks]
            end = start + self._step_times.step(prefills, plan.decodes, plan.kv_tokens)
        else:
            # A running sum from `start`: the same additions, in the same order, as step by step.
            ends = self._step_times.decode_run(plan.decodes, plan.kv_tokens, self._leapt)
            ends[0] += start
            self._ends = np.cumsum(ends, out=ends)
            end = float(ends[-1])
        self._wake = self._clock.at(end, self._priority)

    def _cut_leap(self, ends: np.ndarray) -> None:
        steps = int(np.searchsorted(ends, self._clock.now)) + 1
        if steps < self._leapt:
            self._leapt = steps
            self._wake_at(float(ends[steps - 1]))

    def _wake_at(self, time: float) -> None:
        """Wake the process at `time` instead of when its present event happens."""
        event = self._clock.at(time, self._priority)
        event.callbacks, self._wake.callbacks = self._wake.callbacks, []
        self._wake = event
