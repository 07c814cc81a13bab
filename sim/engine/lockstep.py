"""Engines that share a mixture of experts: each schedules for itself, and all take every step together.

With data parallelism the attention of every engine is its own and the experts are spread over all, so none can go on
without the others (vLLM `v1/engine/core.py`, `DPEngineCoreProc`). To the process that drives it the group is one
scheduler.
"""

from collections.abc import Sequence

from calibrate.batch import Batch
from sim.engine.config import EngineConfig
from sim.engine.plan import Chunk, Plan
from sim.engine.remote_prompts import KvConnector
from sim.engine.request import Request
from sim.engine.scheduler import Scheduler


class GroupPlan:
    """One step of every engine; None where an engine has nothing to do."""

    def __init__(self, plans: Sequence[Plan | None]) -> None:
        self.plans = plans
        given = [plan for plan in plans if plan is not None]
        self.chunks: list[Chunk] = [chunk for plan in given for chunk in plan.chunks]
        self.decodes = sum(plan.decodes for plan in given)
        self.joined = sum(plan.joined for plan in given)
        self.full = 0
        self.kv_tokens = sum(plan.kv_tokens for plan in given)
        self.preempted = sum(plan.preempted for plan in given)
        self.victims = [request for plan in given for request in plan.victims]
        self.resumed = [request for plan in given for request in plan.resumed]
        self.swapped_out = [copy for plan in given for copy in plan.swapped_out]
        self.swapped_in = [copy for plan in given for copy in plan.swapped_in]
        self.starved = [request for plan in given for request in plan.starved]

    @property
    def ending(self) -> list[Request]:
        return [request for plan in self.plans if plan is not None for request in plan.ending]

    @property
    def scheduled(self) -> float:
        return next(plan.scheduled for plan in self.plans if plan is not None)

    @property
    def recomputed(self) -> int:
        return sum(plan.recomputed for plan in self.plans if plan is not None)

    @property
    def missed(self) -> int:
        return sum(plan.missed for plan in self.plans if plan is not None)

    @property
    def batches(self) -> list[Batch]:
        return [
            Batch([(chunk.tokens, chunk.start) for chunk in plan.chunks], plan.decodes, plan.kv_tokens, plan.spread)
            if plan is not None
            else Batch((), 0, 0)
            for plan in self.plans
        ]


class LockStepScheduler:
    """The schedulers of `config.data_parallel` engines, with the interface of one.

    A request goes to the engine with the least 4 × waiting + running, the first of equals: what vLLM's front end does
    (`v1/engine/core_client.py`, `DPLBAsyncMPClient`), here with counts that are never late.
    """

    batches = None  # no windows before several engines

    def __init__(self, config: EngineConfig, *, spread: bool = True) -> None:
        self._schedulers = [Scheduler(config, spread=spread) for _ in range(config.data_parallel)]

    @property
    def running_count(self) -> int:
        return sum(scheduler.running_count for scheduler in self._schedulers)

    @property
    def waiting_count(self) -> int:
        return sum(scheduler.waiting_count for scheduler in self._schedulers)

    @property
    def blocks_held(self) -> int:
        return sum(scheduler.blocks_held for scheduler in self._schedulers)

    def blocks_held_at(self, step: int) -> int:
        return sum(scheduler.blocks_held_at(step) for scheduler in self._schedulers)

    def add(self, request: Request) -> bool:
        chosen = min(self._schedulers, key=lambda one: 4 * one.waiting_count + one.running_count)
        return chosen.add(request)

    def connect(self, connector: KvConnector) -> None:
        for scheduler in self._schedulers:
            scheduler.connect(connector)

    def cached(self, request: Request) -> int:
        return max(scheduler.cached(request) for scheduler in self._schedulers)

    def received(self, request: Request) -> bool:
        return next(one for one in self._schedulers if request in one.remote.coming).received(request)

    def give_back(self, request: Request) -> bool:
        return next(one for one in self._schedulers if request in one.remote.kept).give_back(request)

    def withdraw(self, request: Request) -> bool:
        return any(scheduler.withdraw(request) for scheduler in self._schedulers)

    def abort(self, request: Request, plan: GroupPlan | None, now: float) -> int:
        plans = [None] * len(self._schedulers) if plan is None else plan.plans
        scheduler, own = next(
            (scheduler, own) for scheduler, own in zip(self._schedulers, plans, strict=True) if scheduler.has(request)
        )
        return scheduler.abort(request, own, now)

    def schedule(self, now: float) -> GroupPlan | None:
        plans = [scheduler.schedule(now) for scheduler in self._schedulers]
        return None if all(plan is None for plan in plans) else GroupPlan(plans)

    def horizon(self, plan: GroupPlan) -> int:
        """Steps until the batch of any engine changes."""
        return min(
            scheduler.horizon(own)
            for scheduler, own in zip(self._schedulers, plan.plans, strict=True)
            if own is not None
        )

    def advance(self, plan: GroupPlan, steps: int = 1) -> None:
        for scheduler, own in zip(self._schedulers, plan.plans, strict=True):
            if own is not None:
                scheduler.advance(own, steps)

    def complete(self, plan: GroupPlan, now: float) -> list[Request]:
        finished: list[Request] = []
        for scheduler, own in zip(self._schedulers, plan.plans, strict=True):
            if own is not None:
                finished += scheduler.complete(own, now)
        return finished
