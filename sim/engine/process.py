"""The simulated engine: one SimPy process that drives a scheduler with predicted step times."""

from collections.abc import Callable, Generator, Sequence
from typing import Any, Protocol

import numpy as np
import simpy

from calibrate.batch import Batch
from calibrate.decode_law import DecodeLaw, DecodeRun, SummedRun
from calibrate.skew import Spread
from sim.engine.clock import FIRST_STEP_PRIORITY, Clock
from sim.engine.config import EngineConfig
from sim.engine.contiguous_pool import ContiguousPool
from sim.engine.lockstep import GroupPlan, LockStepScheduler
from sim.engine.no_cache import whole_sequences
from sim.engine.plan import Plan
from sim.engine.request import Request
from sim.engine.reservation_use import ReservationUse
from sim.engine.scheduler import Scheduler
from sim.engine.session_retention import SessionRetention
from sim.engine.step_costs import FREE, StepCost, StepCosts
from sim.results.recorder import EventRecorder, StepRecorder

_LAWS_KEPT = 1024


class StepTimes(Protocol):
    """What the engine asks of `calibrate.latency.StepLatency`."""

    @property
    def asks_spread(self) -> bool:
        """Whether its times depend on how unequal the decoding contexts are."""

    def step(
        self, prefills: Sequence[tuple[int, int]], decodes: int, kv_tokens: int, spread: Spread | None = None
    ) -> float:
        """Seconds of one step; prefills are (new tokens, tokens already cached). It may have neither kind of work."""

    def decode_law(self, decodes: int) -> DecodeLaw | None:
        """The time of a step that only decodes as many sequences; None where their sum of tokens does not tell it."""

    def decode_run(self, decodes: int, kv_tokens: int, steps: int, spread: Spread | None = None) -> np.ndarray:
        """Seconds of each of `steps` decode steps in a row, bit for bit what `step` gives; a new array, (steps,)."""

    def host(self, sequences: int, extra_tokens: int) -> float:
        """Seconds of the host's part of a step; asked only where there are costs of the host."""

    def swap(self, out: int, into: int) -> float:
        """Seconds to copy KV blocks out of the device and into it; asked only where there are any."""

    def group_step(self, batches: Sequence[Batch]) -> float:
        """Seconds of one step of engines that step together; asked only where there are several."""

    def group_decode_run(self, batches: Sequence[Batch], steps: int) -> np.ndarray:
        """The same for `steps` steps in a row in which no engine prefills, (steps,)."""


class Engine:
    """One replica. `submit` hands it a request; `on_finish` is told of every finished one.

    Where nothing can change the batch, many decode steps are one event (a leap). An arrival meanwhile cuts the leap at
    the boundary at which a real engine would act on it.

    An engine with asynchronous scheduling forms the next step when the last but one has ended: at the end of a step it
    knows what was generated up to there, and what arrived, and schedules the step after the one that begins now.
    """

    def __init__(
        self,
        clock: Clock,
        replica: int,
        config: EngineConfig,
        step_times: StepTimes,
        steps: StepRecorder,
        events: EventRecorder,
        on_finish: Callable[[Request], None],
        *,
        costs: StepCosts | None = None,
        leap: bool = True,
    ) -> None:
        """`costs`: what steps take beyond `step_times`; for one engine, not for several in lock-step."""
        # Either takes back only the plans that it made.
        self.scheduler: Any = (
            Scheduler(config, spread=step_times.asks_spread)
            if config.data_parallel == 1
            else LockStepScheduler(config, spread=step_times.asks_spread)
        )
        self._clock = clock
        self._replica = replica
        self._priority = FIRST_STEP_PRIORITY + replica
        self._step_times = step_times
        self._steps = steps
        self._events = events
        self._on_finish = on_finish
        self._costs = costs
        self._cost = FREE  # of the step under way
        self._copy_seconds = 0.0  # of it
        self._kv_cache = config.kv_cache
        self._computed: Plan | GroupPlan = Plan(0)  # by the step under way
        self.retention: SessionRetention | None = None
        self.reservation_use: ReservationUse | None = None
        if isinstance(self.scheduler, Scheduler):
            self.retention = self.scheduler.retention
            if isinstance(self.scheduler.pool, ContiguousPool):
                self.reservation_use = ReservationUse(self.scheduler.pool)
        self._watched = self.retention is not None or self.reservation_use is not None
        self._slower: dict[tuple[int, tuple[float, float]], DecodeLaw] = {}
        self._leap = leap and config.kv_cache  # without, no two steps compute the same
        self._ahead = int(config.async_scheduling)  # steps that are scheduled before they begin
        self._idle = True
        self._decoding: DecodeRun | SummedRun | None = None  # since when the batch is the same
        self._leapt = 1  # steps of the leap under way that will be taken
        self._outdated = False  # whether something came that the step scheduled last does not know of
        self._wake: simpy.Event = clock.event()
        clock.process(self._run_ahead() if self._ahead else self._run())

    def submit(self, request: Request) -> None:
        matters = self.scheduler.add(request)
        if self._idle:
            self._idle = False
            self._wake_at(self._clock.now)
        elif matters:
            self._outdated = True
            if self._leapt > 1 and self._decoding:
                self._cut_leap(self._decoding)

    def close(self, end: float) -> None:
        """The run ended then; nothing comes any more."""
        if self.retention is not None:
            self.retention.close(end)
            self.retention.write_events(self._replica, self._events)

    def _run(self) -> Generator[simpy.Event, None, None]:
        """Schedule, wait, finish."""
        clock, scheduler = self._clock, self.scheduler
        yield self._wake
        while True:
            start = clock.now
            plan = scheduler.schedule(start)
            if plan is None:
                yield self._wait_for_work()
                continue
            steps = scheduler.horizon(plan) if self._leap else 1
            yield self._wait_until(self._begin(plan, start, steps))
            leapt, self._leapt = self._leapt, 1
            scheduler.advance(plan, leapt)
            self._end(plan, start, leapt)

    def _run_ahead(self) -> Generator[simpy.Event, None, None]:
        """Schedule the next step before the present one, or the last of a leap, has begun."""
        clock, scheduler = self._clock, self.scheduler
        yield self._wake
        plan: Plan | GroupPlan | None = None
        while True:
            if plan is None:  # nothing was scheduled ahead
                plan = scheduler.schedule(clock.now)
                if plan is None:
                    yield self._wait_for_work()
                    continue
                self._outdated = False
            start = clock.now
            # What the plan does not know may change the step after it.
            waits = self._outdated and scheduler.waiting_count
            steps = scheduler.horizon(plan) if self._leap and not waits else 1
            end = self._begin(plan, start, steps)
            if steps > 1 and (decoding := self._decoding):
                yield self._wait_until(decoding.end(steps - 1))
                end = decoding.end(self._leapt)
            leapt, self._leapt = self._leapt, 1  # what comes from here on is too late to cut it
            scheduler.advance(plan, leapt)
            # An engine that is started anew knows what has come when it is up.
            following = None if self._cost.restart else scheduler.schedule(clock.now)
            self._outdated = False
            yield self._wait_until(end)
            self._outdated = self._outdated or bool(plan.ending)
            self._end(plan, start, leapt)
            plan = following

    def _begin(self, plan: Plan | GroupPlan, start: float, steps: int) -> float:
        """Start a step, or a leap of so many; returns when it ends."""
        self._leapt = steps
        if self.reservation_use is not None:
            self.reservation_use.began()
        computed = self._computed = plan if self._kv_cache else self._without_cache(plan)
        if self._costs is not None:
            assert isinstance(computed, Plan)
            before, self._cost = self._cost, self._costs.begin(computed, start)
            if self._cost.restart:
                self._restart(plan, start)
                return start + self._cost.once
            if self._cost.once or self._cost.steady != before.steady:
                self._decoding = None
        if computed.chunks or computed.swapped_out or not computed.decodes:  # without any work it only preempts
            self._decoding = None
            return start + self._step(computed)
        decoding = self._decoding
        if decoding is None or plan.starved or not decoding.goes_on(plan.decodes, plan.kv_tokens):
            decoding = self._decoding = self._decode_run(plan, start + self._cost.once, steps)
        return decoding.end(steps)

    def _without_cache(self, plan: Plan | GroupPlan) -> Plan:
        assert isinstance(plan, Plan)
        scheduler = self.scheduler
        return whole_sequences(plan, [(request, scheduler.context(request)) for request in scheduler.decoding(plan)])

    def _restart(self, plan: Plan | GroupPlan, start: float) -> None:
        """The engine starts anew instead of running `plan`, of which nothing is left to compute."""
        assert isinstance(plan, Plan)
        self._decoding = None
        self._leapt = 1
        self._computed = plan
        self._events.of_schedule(self._replica, plan)
        plan.resumed = ()
        plan.victims = self.scheduler.reset(plan, start)
        plan.scheduled = start  # since when they wait
        if self.reservation_use is not None:
            self.reservation_use.ran(start, start, 0, 0)
            self.reservation_use.began()

    def _step(self, plan: Plan | GroupPlan) -> float:
        if isinstance(plan, GroupPlan):
            seconds = self._step_times.group_step(plan.batches) if plan.chunks or plan.decodes else 0.0
            self._copy_seconds = max(self._copies(own) for own in plan.plans if own is not None)
            return seconds + self._copy_seconds
        prefills = [(chunk.tokens, chunk.start) for chunk in plan.chunks]
        seconds = self._step_times.step(prefills, plan.decodes, plan.kv_tokens, plan.spread)
        cost = self._cost
        if cost.padding:
            seconds += cost.padding
        if cost.host:
            sequences = plan.decodes + len(prefills)
            extra = sum(new for new, _ in prefills) - len(prefills)
            seconds = self._with_host(seconds, self._step_times.host(sequences, extra))
        self._copy_seconds = self._copies(plan)
        return seconds + cost.once + cost.each + self._copy_seconds

    def _with_host(self, seconds: Any, host: float) -> Any:
        """The seconds of steps, alone or in an array, of which the host has `host`, and now more."""
        more = self._cost.host
        return np.maximum(seconds, host + more) if self._ahead else seconds + more

    def _copies(self, plan: Plan) -> float:
        """Seconds before the step proper: what it overwrites goes out first, what it reads comes back first."""
        if not plan.swapped_out and not plan.swapped_in:
            return 0.0
        out, into = (sum(len(copy.host) for copy in copies) for copies in (plan.swapped_out, plan.swapped_in))
        return self._step_times.swap(out, into)

    def _decode_run(self, plan: Plan | GroupPlan, start: float, steps: int) -> DecodeRun | SummedRun:
        if isinstance(plan, GroupPlan):
            return SummedRun(start, self._step_times.group_decode_run(plan.batches, steps))
        law, cost = self._step_times.decode_law(plan.decodes), self._cost
        if law is not None:
            if cost.each or cost.host:
                law = self._law_with(law, cost)
            return DecodeRun(start, law, plan.kv_tokens)
        seconds = self._step_times.decode_run(plan.decodes, plan.kv_tokens, steps, plan.spread)
        if cost.host:
            seconds = self._with_host(seconds, self._step_times.host(plan.decodes, 0))
        return SummedRun(start, seconds + cost.each if cost.each else seconds)

    def _law_with(self, law: DecodeLaw, cost: StepCost) -> DecodeLaw:
        key = law.decodes, cost.steady
        if key not in self._slower:
            if len(self._slower) >= _LAWS_KEPT:  # costs that change all the time make ever new ones
                self._slower.clear()
            self._slower[key] = law.slower(cost.each, cost.host, overlaps=bool(self._ahead))
        return self._slower[key]

    def _end(self, plan: Plan | GroupPlan, start: float, leapt: int) -> None:
        """The step, or leap of so many, that began at `start` has ended."""
        if self._decoding is not None:
            self._decoding.take(leapt)
        scheduler, now = self.scheduler, self._clock.now
        running, waiting = scheduler.running_count, scheduler.waiting_count
        finished = scheduler.complete(plan, now)
        self._steps.append(self._replica, start, now, leapt, self._computed, running, waiting, scheduler.blocks_held)
        if self._watched:
            self._watch(start, now, finished)
        if (plan.chunks or plan.preempted) and (
            plan.missed or plan.recomputed or plan.victims or plan.resumed or plan.swapped_out or plan.swapped_in
        ):
            self._events.of_step(self._replica, start, plan, self._copy_seconds)
        if self._costs is not None:
            if not self._cost.restart:
                self._costs.end(start, leapt)
            for request in finished:
                self._costs.finished(request, now)
        for request in finished:
            self._on_finish(request)

    def _watch(self, start: float, end: float, finished: Sequence[Request]) -> None:
        """A row of steps has ended: what became of the memory."""
        if self.reservation_use is not None:
            gone = sum(request.prompt_tokens + request.output_tokens - 1 for request in finished)
            self.reservation_use.ran(start, end, self.scheduler.tokens_held, gone)
        if self.retention is not None:
            self.retention.write_events(self._replica, self._events)

    def _cut_leap(self, decoding: DecodeRun | SummedRun) -> None:
        """An arrival is acted on where the present step ends: the step after it, or after the one that was already
        scheduled, is the last of the leap."""
        present = decoding.steps_until(self._clock.now)
        if present + self._ahead < self._leapt:
            self._leapt = present + self._ahead
            self._wake_at(decoding.end(present))

    def _wait_for_work(self) -> simpy.Event:
        self._idle = True
        self._wake = self._clock.event()
        return self._wake

    def _wait_until(self, time: float) -> simpy.Event:
        self._wake = self._clock.at(time, self._priority)
        return self._wake

    def _wake_at(self, time: float) -> None:
        """Wake the process at `time` instead of when its present event happens."""
        event = self._clock.at(time, self._priority)
        event.callbacks, self._wake.callbacks = self._wake.callbacks, []
        self._wake = event
