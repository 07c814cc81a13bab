"""The scheduler of an engine whose layers lie on several stages, with up to one batch in flight for each.

vLLM V1's rule (`v1/core/sched/scheduler.py`, `v1/engine/core.py`): batches are scheduled one after the other from the
same requests and blocks, and a token that is under way cannot be decoded further. So those who decode go round in the
batch in which their prompt was completed, while the chunks of a long prompt may be in several batches at once. How many
go round together is as arrivals and budget made it: nothing evens it out.
"""

from collections import deque
from collections.abc import Sequence

from sim.engine.block_pool import BlockPool
from sim.engine.blocked_head import BlockedHead
from sim.engine.config import EngineConfig
from sim.engine.decode_batch import DecodeBatch
from sim.engine.plan import Plan
from sim.engine.request import Request
from sim.engine.scheduler import Scheduler


class PipelineScheduler(Scheduler):
    """Call `schedule` and at once `advance`, and `complete` when the batch has left the last stage.

    Where fewer blocks are free than a batch needs, somebody is preempted whose token may be under way in another: it
    still comes, as with asynchronous scheduling.
    """

    def __init__(self, config: EngineConfig, *, spread: bool = True) -> None:
        super().__init__(config, spread=spread)
        others = [DecodeBatch(self.pool, self._size, spread=spread) for _ in range(config.pipeline_parallel - 1)]
        for index, batch in enumerate(others, start=1):
            batch.step = index << 40  # a request that changed its batch must not seem to finish in the old one
        self._here: deque[DecodeBatch] = deque([self._batch, *others])  # not in flight, longest here first
        self._in_flight: dict[Plan, DecodeBatch] = {}
        self._batch_of: dict[Request, DecodeBatch] = {}  # of those who decode

    @property
    def tokens_held(self) -> int:
        batches = [*self._here, *self._in_flight.values()]
        return super().tokens_held - self._batch.kv_tokens + sum(batch.kv_tokens for batch in batches)

    @property
    def prefills(self) -> bool:
        """Whether somebody's prompt is not computed yet."""
        return bool(self._prefilling)

    def schedule(self, now: float) -> Plan | None:
        """The next batch: of those who are not in flight, and of who waits. There is room in the pipeline."""
        self._batch = next((batch for batch in self._here if batch.count), self._here[0])
        return super().schedule(now)

    def advance(self, plan: Plan, steps: int = 1) -> None:
        batch = self._batch
        super().advance(plan, steps)
        for chunk in plan.chunks:
            if chunk.last and chunk.request not in self._ended:
                self._batch_of[chunk.request] = batch
        self._here.remove(batch)
        self._in_flight[plan] = batch

    def complete(self, plan: Plan, now: float) -> list[Request]:
        self._here.append(self._in_flight.pop(plan))
        finished = super().complete(plan, now)
        for request in finished:
            self._batch_of.pop(request, None)
        return finished

    def batch(self, plan: Plan) -> DecodeBatch:
        """Those who decode in a batch in flight, as they are when it has completed."""
        return self._in_flight[plan]

    def blocks_before_admission(self, plans: Sequence[Plan]) -> int | None:
        """How many blocks may be taken before the first who waits may be admitted to a batch; None: perhaps at once.

        `plans` are all that is in flight, scheduled since anybody came or left, so each refused the same request. What
        it was found to have then it must have now: other batches took blocks meanwhile.
        """
        refused = [plan.blocked.hit for plan in plans if plan.blocked is not None]
        head = self._waiting.head() if refused else None
        if head is None:
            return self.pool.free
        assert isinstance(self.pool, BlockPool)
        hit = self.pool.find(head.holding, head.prompt_tokens if head.remote else head.target)
        if any(old.spans != hit.spans or bool(old.resumed) != bool(hit.resumed) for old in refused):
            return None
        return BlockedHead(head.holding, hit).blocks_before_gap(self.pool, self.pool.free)

    def next_decodes(self, batch: DecodeBatch, steps: int = 0) -> Plan:
        """What such a batch computes, so many steps after the next one."""
        plan = Plan(0)
        plan.decodes = batch.count
        plan.kv_tokens = batch.kv_tokens + steps * batch.count
        return plan

    def go_round(self, plan: Plan, times: int) -> Plan:
        """A batch in flight has completed, and was scheduled so many times more, of which the last is in flight:
        nobody joined or left, and there were blocks. Returns the last."""
        batch = self._in_flight.pop(plan)
        last = self.next_decodes(batch, times - 1)
        if blocks := batch.at_edge[batch.step % self._size]:
            batch.take(blocks)
        batch.advance(self.next_decodes(batch), times)
        self._in_flight[last] = batch
        return last

    def context(self, request: Request) -> int:
        return self._batch_of[request].context(request)

    def decoding(self, plan: Plan) -> list[Request]:
        return [request for request in super().decoding(plan) if not self._elsewhere(request)]

    def abort(self, request: Request, plan: Plan | None, now: float) -> int:
        batch, self._batch = self._batch, self._batch_of.get(request, self._batch)
        tokens = super().abort(request, plan, now)
        self._batch = batch
        self._batch_of.pop(request, None)
        return tokens

    def _elsewhere(self, request: Request) -> bool:
        return self._batch_of.get(request, self._batch) is not self._batch

    def _take_out(self, request: Request, granted: int, saving: Plan | None = None) -> None:
        batch, self._batch = self._batch, self._batch_of.get(request, self._batch)
        super()._take_out(request, granted, saving)
        self._batch = batch
        self._batch_of.pop(request, None)

    def _join(self, request: Request, plan: Plan, now: float) -> None:
        super()._join(request, plan, now)
        self._batch_of[request] = self._batch
