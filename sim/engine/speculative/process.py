"""The simulated engine that speculates. No two of its steps are known to be alike: each is an event, it never leaps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, cast

import numpy as np

from calibrate.decode_law import SummedRun
from calibrate.skew import Spread
from sim.engine.config import EngineConfig
from sim.engine.lockstep import GroupPlan
from sim.engine.plan import Plan
from sim.engine.process import Engine
from sim.engine.scheduler import Scheduler
from sim.engine.speculative.batch import SpeculativeBatch
from sim.engine.speculative.drafter import DrawnDrafter
from sim.engine.speculative.step_events import write_step


class VerifyTimes(Protocol):
    """What it asks of `calibrate.verification.VerifyLatency`."""

    def verify(
        self,
        prefills: Sequence[tuple[int, int]],
        verified: Sequence[tuple[int, int]],
        spread: Spread | None = None,
    ) -> float:
        """Seconds of one step that computes prompts and verifies drafts; both are (new tokens, tokens cached)."""

    def drafting(
        self, prefills: Sequence[tuple[int, int]], verified: Sequence[tuple[int, int]], sequences: int, kv_tokens: int
    ) -> float:
        """Seconds behind such a step to draft for `sequences` that have `kv_tokens` in all."""

    def host(self, sequences: int, extra_tokens: int) -> float:
        """Seconds of the host's part of a step."""


class SpeculativeEngine(Engine):
    """The arguments are an `Engine`'s; `step_times` are `VerifyTimes` too."""

    def _make_scheduler(self, config: EngineConfig, spread: bool) -> Scheduler:
        assert config.speculative is not None
        scheduler = Scheduler(config, spread=spread)
        assert scheduler.speculation is not None
        self._batch: SpeculativeBatch = scheduler.speculation
        self._batch.drafter = DrawnDrafter(config.speculative)
        self._verified: list[tuple[int, int]] = []  # by the step under way
        self._drafting = 0.0  # seconds of it
        return scheduler

    @property
    def _verify_times(self) -> VerifyTimes:
        return cast(VerifyTimes, self._step_times)

    def _begin(self, plan: Plan | GroupPlan, start: float, steps: int) -> float:
        self._verified, self._drafting = self._batch.verified, 0.0
        return super()._begin(plan, start, steps)

    def _step(self, plan: Plan | GroupPlan) -> float:
        self._copy_seconds = self._copies(cast(Plan, plan))
        return self._seconds(cast(Plan, plan)) + self._cost.once + self._copy_seconds

    def _decode_run(self, plan: Plan | GroupPlan, start: float, steps: int) -> SummedRun:
        return SummedRun(start, np.array([self._pace * self._seconds(cast(Plan, plan))]))

    def _seconds(self, plan: Plan) -> float:
        """Of a step, with what it costs every time."""
        times, cost, verified = self._verify_times, self._cost, self._verified
        prefills = [(chunk.tokens, chunk.start) for chunk in plan.chunks]
        if not prefills and not verified:
            return cost.each
        seconds = times.verify(prefills, verified, plan.spread) + cost.padding
        if cost.host:
            sequences = len(verified) + len(prefills)
            tokens = sum(new for new, _ in [*prefills, *verified])
            seconds = float(self._with_host(seconds, times.host(sequences, tokens - sequences)))
        ending = [(chunk.tokens, chunk.start) for chunk in plan.chunks if chunk.last]
        sampled = [*verified, *ending]
        if sampled:
            kv_tokens = sum(new + cached for new, cached in sampled)
            self._drafting = times.drafting(prefills, verified, len(sampled), kv_tokens)
        return seconds + self._drafting + cost.each

    def _end(self, plan: Plan | GroupPlan, start: float, leapt: int) -> None:
        write_step(self._events, self._replica, start, self._batch, self._drafting or None)
        super()._end(plan, start, leapt)
