"""The simulated engine: one SimPy process that drives a scheduler with predicted step times."""

from collections.abc import Callable, Generator, Sequence
from typing import Any

import numpy as np
import simpy

from calibrate.decode_law import DecodeLaw, DecodeRun, SummedRun
from sim.engine.batching.alarm import Alarm
from sim.engine.clock import FIRST_STEP_PRIORITY, Clock
from sim.engine.config import EngineConfig
from sim.engine.contiguous_pool import ContiguousPool
from sim.engine.gauge import Gauge
from sim.engine.lockstep import GroupPlan, LockStepScheduler
from sim.engine.no_cache import whole_sequences
from sim.engine.plan import Plan
from sim.engine.request import Request
from sim.engine.reservation_use import ReservationUse
from sim.engine.scheduler import Scheduler
from sim.engine.session_retention import SessionRetention
from sim.engine.step_costs import FREE, StepCost, StepCosts
from sim.engine.step_times import StepTimes
from sim.results.recorder import EventRecorder, StepRecorder

_LAWS_KEPT = 1024


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
        self.scheduler: Any = self._make_scheduler(config, step_times.asks_spread)
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
        self._blocks = config.kv_blocks * config.data_parallel
        self._computed: Plan | GroupPlan = Plan(0)  # by the step under way
        self.retention: SessionRetention | None = None
        self.reservation_use: ReservationUse | None = None
        if isinstance(self.scheduler, Scheduler):
            self.retention = self.scheduler.retention
            if isinstance(self.scheduler.pool, ContiguousPool):
                self.reservation_use = ReservationUse(self.scheduler.pool)
        self._watched = self.retention is not None or self.reservation_use is not None
        self._slower: dict[tuple[int, tuple[float, float], float], DecodeLaw] = {}
        self._leap = leap and config.kv_cache  # without, no two steps compute the same
        self._ahead = int(config.async_scheduling)  # steps that are scheduled before they begin
        self._tends = config.kv_offload is not None  # a step may have something to do though nobody waits
        self._idle = True
        self._decoding: DecodeRun | SummedRun | None = None  # since when the batch is the same
        self._leapt = 1  # steps of the leap under way that will be taken
        self._outdated = False  # whether something came that the step scheduled last does not know of
        self._aborted: list[Request] = []  # that leave where the step under way ends
        self._aborted_tokens = 0  # that those had who left in the row of steps under way
        self._wanted_pace = self._pace = 1.0  # how many times as long steps take; those that begin
        self._under_way: tuple[Plan | GroupPlan, float] | None = None  # what is computed, and since when
        self._advanced = 0  # steps of it that the scheduler counts as computed
        self._wake: simpy.Event = clock.event()
        self._alarm = Alarm(clock, self.scheduler.batches, lambda: self._hear(True))
        clock.process(self._run_ahead() if self._ahead else self._run())

    def _make_scheduler(self, config: EngineConfig, spread: bool) -> Scheduler | LockStepScheduler:
        return (Scheduler if config.data_parallel == 1 else LockStepScheduler)(config, spread=spread)

    def submit(self, request: Request) -> None:
        self._hear(self.scheduler.add(request))

    def received(self, request: Request) -> None:
        """The prompt that another engine computed has come."""
        self._hear(self.scheduler.received(request))

    def give_back(self, request: Request) -> None:
        """Another engine has read the blocks of a request that had ended, and kept them for it."""
        matters = self.scheduler.give_back(request)
        if matters or not self._idle:
            self._hear(matters)

    def _hear(self, matters: bool) -> None:
        """Something came in between; `matters`: the next step may differ because of it."""
        if self._idle:
            self._idle = False
            self._wake_at(self._clock.now)
        elif matters:
            self._outdated = True
            if self._leapt > 1 and self._decoding:
                self._cut_leap(self._decoding)

    def abort(self, request: Request) -> None:
        """The client of a request that has not finished has gone, which the engine acts on where the step under way
        ends, in a pipeline where the next batch comes out: before it looks who has finished, or where it schedules
        ahead before it schedules again. Steps that are scheduled compute the request all the same (vLLM,
        `EngineCore.step` and `step_with_batch_queue`)."""
        if self.scheduler.withdraw(request):
            if self._costs is not None:
                self._costs.aborted(request, self._clock.now)
        else:
            self._aborted.append(request)
        if not self._idle or self.scheduler.waiting_count:  # if only it was in the way of those who wait
            self._hear(True)

    def slow(self, factor: float) -> None:
        """Steps take `factor` times as long from now on, their host's part and copies too: those that are not
        scheduled yet. 1: as fast as ever."""
        self._wanted_pace = factor
        if not self._idle:
            self._hear(True)

    def stop(self) -> None:
        """Its process ends: what it has never finishes. The step under way is not written, as it did not end."""
        self._clock.abandon(self._wake)
        self._alarm.stop()
        self._leapt = 1  # there is nothing that could be cut
        decoding, under_way, now = self._decoding, self._under_way, self._clock.now
        if decoding is None or under_way is None or (ended := decoding.steps_until(now) - 1) < 1:
            return
        self._under_way = None
        (plan, start), end, scheduler = under_way, decoding.end(ended), self.scheduler
        if not self._advanced:
            scheduler.advance(plan, ended)
        decoding.take(ended)
        running, waiting = scheduler.running_count, scheduler.waiting_count
        self._steps.append(self._replica, start, end, ended, self._computed, running, waiting, scheduler.blocks_held)
        if self.reservation_use is not None:
            ahead = plan.decodes * max(0, self._advanced - ended)
            self.reservation_use.ran(start, end, scheduler.tokens_held - ahead, 0)
        self._wrote(start, end, ended)

    @property
    def gauge(self) -> Gauge:
        """What it says of itself now: the same whether it leaps or takes every step."""
        scheduler, step = self.scheduler, 1
        if self._leapt > 1 and self._decoding is not None:
            step = self._decoding.steps_until(self._clock.now) + self._ahead
        kv_use = scheduler.blocks_held_at(step) / self._blocks
        return Gauge(scheduler.waiting_count, scheduler.running_count, kv_use)

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
            if self._pace != self._wanted_pace:
                self._change_pace(self._wanted_pace)
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
        pace = 1.0  # when it was scheduled
        while True:
            if plan is None:  # nothing was scheduled ahead
                plan = scheduler.schedule(clock.now)
                if plan is None:
                    yield self._wait_for_work()
                    continue
                self._outdated = False
                pace = self._wanted_pace
            if self._pace != pace:
                self._change_pace(pace)
            start = clock.now
            # What the plan does not know may change the step after it.
            waits = self._outdated and (scheduler.waiting_count or self._tends)
            alike = not waits and not self._aborted and pace == self._wanted_pace
            steps = scheduler.horizon(plan) if self._leap and alike else 1
            end = self._begin(plan, start, steps)
            if steps > 1 and (decoding := self._decoding):
                yield self._wait_until(decoding.end(steps - 1))
                end = decoding.end(self._leapt)
            leapt, self._leapt = self._leapt, 1  # what comes from here on is too late to cut it
            scheduler.advance(plan, leapt)
            self._advanced = leapt
            if self._aborted:
                self._let_go(self._aborted, plan)
            # An engine that is started anew knows what has come when it is up.
            following = None if self._cost.restart else scheduler.schedule(clock.now)
            self._outdated = False
            pace = self._wanted_pace
            yield self._wait_until(end)
            self._outdated = self._outdated or bool(plan.ending)
            self._end(plan, start, leapt)
            plan = following

    def _begin(self, plan: Plan | GroupPlan, start: float, steps: int) -> float:
        """Start a step, or a leap of so many; returns when it ends."""
        self._leapt = steps
        self._under_way, self._advanced = (plan, start), 0
        if self.reservation_use is not None:
            self.reservation_use.began()
        computed = self._computed = plan if self._kv_cache else whole_sequences(plan, self.scheduler)
        if self._costs is not None:
            assert isinstance(computed, Plan)
            before, self._cost = self._cost, self._costs.begin(computed, start)
            if self._cost.restart:
                self._restart(plan, start)
                return start + self._pace * self._cost.once
            if self._cost.once or self._cost.steady != before.steady:
                self._decoding = None
        if computed.chunks or computed.swapped_out or not computed.decodes:  # without any work it only preempts
            self._decoding = None
            return start + self._pace * self._step(computed)
        decoding = self._decoding
        goes_on = decoding is not None and not plan.starved and not plan.joined
        if decoding is None or not goes_on or not decoding.goes_on(plan.decodes, plan.kv_tokens, plan.full):
            decoding = self._decoding = self._decode_run(plan, start + self._pace * self._cost.once, steps)
        return decoding.end(steps)

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
            return SummedRun(start, self._pace * self._step_times.group_decode_run(plan.batches, steps))
        law, cost = self._step_times.decode_law(plan.decodes), self._cost
        if law is not None:
            if cost.each or cost.host or self._pace != 1.0:
                law = self._law_with(law, cost)
            return DecodeRun(start, law, plan.kv_tokens, plan.full)
        assert not plan.full  # how many tokens the steps in a row read is known to the law alone
        seconds = self._step_times.decode_run(plan.decodes, plan.kv_tokens, steps, plan.spread)
        if cost.host:
            seconds = self._with_host(seconds, self._step_times.host(plan.decodes, 0))
        if cost.each:
            seconds = seconds + cost.each
        return SummedRun(start, self._pace * seconds if self._pace != 1.0 else seconds)

    def _law_with(self, law: DecodeLaw, cost: StepCost) -> DecodeLaw:
        key = law.decodes, cost.steady, self._pace
        if key not in self._slower:
            if len(self._slower) >= _LAWS_KEPT:  # costs that change all the time make ever new ones
                self._slower.clear()
            self._slower[key] = law.slower(cost.each, cost.host, overlaps=bool(self._ahead)).times(self._pace)
        return self._slower[key]

    def _end(self, plan: Plan | GroupPlan, start: float, leapt: int) -> None:
        """The step, or leap of so many, that began at `start` has ended."""
        self._under_way = None
        if self._decoding is not None:
            self._decoding.take(leapt)
        scheduler, now = self.scheduler, self._clock.now
        running, waiting = scheduler.running_count, scheduler.waiting_count
        if self._aborted:
            # The step that is scheduled ahead counts on the others.
            self._let_go([one for one in self._aborted if one in plan.ending] if self._ahead else self._aborted, plan)
        finished = scheduler.complete(plan, now)
        self._steps.append(self._replica, start, now, leapt, self._computed, running, waiting, scheduler.blocks_held)
        if self._watched:
            self._watch(start, now, finished)
        if (plan.chunks or plan.preempted or plan.swapped_out) and (
            plan.missed or plan.recomputed or plan.victims or plan.resumed or plan.swapped_out or plan.swapped_in
        ):
            self._events.of_step(self._replica, start, plan, self._copy_seconds)
        if self._costs is not None or self._pace != 1.0:
            self._wrote(start, now, leapt)
        if self._costs is not None:
            for request in finished:
                self._costs.finished(request, now)
        for request in finished:
            self._on_finish(request)

    def _wrote(self, start: float, end: float, steps: int) -> None:
        """A row of steps that ended: what was beside them."""
        if self._costs is not None and not self._cost.restart:
            self._costs.end(start, steps)
        if self._pace != 1.0:
            longer = (end - start) * (1.0 - 1.0 / self._pace)
            self._events.append(start, self._replica, "slowed", seconds=longer, amount=steps)

    def _change_pace(self, pace: float) -> None:
        self._pace = pace
        self._decoding = None

    def _let_go(self, aborted: Sequence[Request], plan: Plan | GroupPlan) -> None:
        """Those leave whose clients have gone; `plan` has advanced and not completed."""
        now = self._clock.now
        self._aborted = [request for request in self._aborted if request not in aborted]
        for request in aborted:
            if not self.scheduler.withdraw(request):  # an engine that was started anew has put it back
                self._aborted_tokens += self.scheduler.abort(request, plan, now)
            if self._costs is not None:
                self._costs.aborted(request, now)

    def _watch(self, start: float, end: float, finished: Sequence[Request]) -> None:
        """A row of steps has ended: what became of the memory."""
        if self.reservation_use is not None:
            gone = sum(request.prompt_tokens + request.output_tokens - 1 for request in finished)
            gone, self._aborted_tokens = gone + self._aborted_tokens, 0
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
        event.callbacks = self._wake.callbacks
        self._clock.abandon(self._wake)
        self._wake = event
