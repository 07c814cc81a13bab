"""The scheduler of one engine: what runs in the next step. It has no clock; whoever drives it tells the time.

A step passes through it three times: `schedule` says what it computes, `advance` counts that as computed, and
`complete` is told when it has ended. An engine that schedules synchronously calls the latter two together (`finish`).
One that schedules asynchronously advances when the step is launched and schedules the next one while it runs: so an
arrival waits a step longer, and a finished request keeps its seat and blocks for one schedule more.

The rules are vLLM V1's (`vllm/v1/core/sched/scheduler.py`): one token budget a step, running requests first in order of
admission, then waiting ones; prompts may be computed in chunks; when blocks run out somebody is preempted, his blocks
are freed and his tokens recomputed later; nobody is admitted in a step that preempted.

Who runs, and what each gets of a step, is in `running.py`, and who comes with blocks that were computed elsewhere in
`join_with_blocks.py`; here is who waits, who is admitted, and who leaves.
"""

from operator import attrgetter

from sim.engine.block_pool import BlockPool, Hit
from sim.engine.blocked_head import BlockedHead
from sim.engine.capacity_policy import tokens_to_the_end
from sim.engine.config import EngineConfig
from sim.engine.join_with_blocks import JoinWithBlocks
from sim.engine.kv_pool import new_holding
from sim.engine.plan import Chunk, Plan
from sim.engine.prefill_policy import PREFILL_POLICIES
from sim.engine.request import Request
from sim.engine.token_budget import TokenBudget

_admission = attrgetter("admission")


class Scheduler(JoinWithBlocks):
    """Decides for one engine. Call `add`, then in turn `schedule` and `finish` (or `advance` and `complete`)."""

    def __init__(self, config: EngineConfig, *, spread: bool = True) -> None:
        super().__init__(config, spread=spread)
        self._prefill_policy = PREFILL_POLICIES[config.prefill_policy]
        self._no_evict = config.capacity_policy == "guaranteed_no_evict"
        self._token_budget: TokenBudget | None = None
        if config.token_budget is not None:
            self._token_budget = TokenBudget(config.token_budget, config.max_num_batched_tokens)

    @property
    def waiting_count(self) -> int:
        waiting = len(self._waiting)
        return waiting if self.remote.connector is None and self.offload is None else waiting + len(self.remote)

    @property
    def opens_at(self) -> float | None:
        """When those who wait may join though nobody comes or leaves; one that is past means now. None: not so."""
        return None if self.batches is None else self.batches.opens_at

    @property
    def blocks_held(self) -> int:
        """By requests, and for idle sessions."""
        return self.pool.held

    def blocks_held_at(self, step: int) -> int:
        """The same in the `step`-th step of a leap, the first of which is scheduled and not advanced."""
        if step == 1 or not isinstance(self.pool, BlockPool):  # the others take nothing as a request decodes
            return self.pool.held
        return self.pool.held + self._batch.blocks_taken(step)

    def fits(self, prompt_tokens: int, output_tokens: int) -> bool:
        """Whether such a request can run when it is alone. Its last token is never computed."""
        tokens = prompt_tokens + output_tokens - 1
        if not self.config.enable_chunked_prefill and tokens > self.config.max_num_batched_tokens:
            return False
        return self.pool.fits(prompt_tokens, output_tokens)

    def add(self, request: Request) -> bool:
        """Queue an arrival; True if the next step may differ because of it.

        Raises:
            ValueError: it cannot run even when alone (see `fits`), and would wait for ever.
        """
        if not self.fits(request.prompt_tokens, request.output_tokens):
            raise ValueError(f"request {request.request_id} can never run")
        request.holding = new_holding(self.config, request)
        if self.offload is not None:
            self.offload.arrived(request)
        self._waiting.push(request)
        if self._service is not None and self._service.arrives(request):
            return True
        if self.batches is not None:
            return self.opens_at is not None and self.opens_at <= request.arrival
        # Behind a blocked head, or where all seats are taken, it changes nothing until somebody finishes.
        return self._waiting.head() is request and len(self._running) < self.config.max_num_seqs

    def schedule(self, now: float) -> Plan | None:
        """The next step, begun at `now`; None if there is nothing to do."""
        offload = self.offload
        if offload is not None:
            offload.tend(now, crowded=bool(self._waiting or self.remote.ready))
        if not self._running and not self._waiting and not self.remote.ready and not (offload and offload.overwrites):
            return None
        if self.retention is not None:
            self.retention.expire(now)
        if self.batches is not None:
            self.batches.form(now)
        if self._service is not None:
            self._service.lift()
        if self._token_budget is not None:
            self._budget = self._token_budget.tokens
        plan = None if self._prefill_policy is None else self._prefill_policy(self, now)
        if plan is None:
            plan = self._grant_all() or self._grant_in_order()
            if not plan.preempted and (self._waiting or self.remote.ready):
                self._admit(plan, now)
        if self._service is not None and self._service.contested and len(self._running) < self.config.max_num_seqs:
            plan.once = True  # whose turn it is may change as they decode
        plan.scheduled = now
        if offload is not None:
            offload.planned(plan)
        if not (plan.decodes or plan.chunks or plan.preempted or plan.starved or plan.swapped_out):
            return None  # all that run have their last token under way
        return plan

    @property
    def decoding_count(self) -> int:
        return self._batch.count

    def prompts_step(self, now: float) -> Plan:
        """A step that computes prompts alone, of who waits too; without chunks where none can be computed."""
        plan = self._grant_prompts()
        if len(plan.chunks) == len(self._prefilling):  # else others would take the blocks that one of them lacks
            self._admit(plan, now, joins=False)
        plan.paused = bool(plan.chunks)
        # Of somebody's prompt no more was computed, although he runs or has a prefix cached: he may need less soon, or
        # find what those give back who end in the step under way.
        plan.once = not plan.chunks and (plan.blocked is not None or bool(self._prefilling))
        return plan

    def decodes_step(self, now: float) -> Plan:
        """A step of those who decode alone."""
        plan = self._grant_all(prompts=False) or self._grant_in_order(prompts=False)
        if self.remote.ready and not plan.preempted and len(self._running) < self.config.max_num_seqs:
            self._join_ready(plan, now)
        return plan

    def horizon(self, plan: Plan) -> int:
        """How many steps from `plan` on are the same batch, each with one more token a sequence.

        Until then nobody finishes and the blocks suffice; arrivals are the caller's to watch (see `add`). A waiting
        head that could not be admitted now cannot be before somebody finishes: seats, budget and free blocks do
        not grow meanwhile, and what it needs does not fall faster than they do, but where `blocked_head.py` says so.
        (The blocks of idle sessions may come back, but all had been given up if it needed blocks.)
        """
        if plan.chunks or plan.starved or plan.preempted or plan.first_tokens or plan.swapped_out or plan.once:
            return 1
        if self._token_budget is not None and self._token_budget.tokens != self._budget:
            return 1  # a step has ended since this one was scheduled
        if self.offload is None:
            steps = self._batch.horizon(self.pool.free)
        elif self.offload.unsettled:
            return 1
        else:
            steps = self._batch.horizon(self.offload.free_in_leap())
        if plan.blocked is not None and steps > 1:
            assert isinstance(self.pool, BlockPool)
            blocks = self._batch.blocks_taken(steps)
            before_gap = plan.blocked.blocks_before_gap(self.pool, blocks)
            if before_gap < blocks:
                steps = self._batch.horizon(before_gap)
        return steps

    def finish(self, plan: Plan, now: float, steps: int = 1) -> list[Request]:
        """The plan has run, `steps` times over (at most its `horizon`); it ended at `now`. Returns who finished."""
        self.advance(plan, steps)
        return self.complete(plan, now)

    def advance(self, plan: Plan, steps: int = 1) -> None:
        """Count what the plan computes, `steps` times over, as computed: the next `schedule` goes on from there."""
        if not plan.paused:
            self._batch.advance(plan, steps)
        for chunk in plan.chunks:
            request = chunk.request
            request.computed = chunk.start + chunk.tokens
            if request.repeats_until or request.holding.cached_anew:
                self._count_repeats(plan, chunk)
            if request.computed == request.target:  # its last chunk
                del self._prefilling[request]
                if not request.generated:
                    plan.first_tokens.append(request)
                request.generated += 1
                if request.generated == request.output_tokens:
                    plan.ending.append(request)
                else:
                    self._batch.start(request)
        if plan.ending:
            plan.ending.sort(key=_admission)  # their blocks enter the queue in this order
            self._ended.update(plan.ending)
            if self._adapters is not None:
                for request in plan.ending:
                    self._adapters.leaves(request)

    def _count_repeats(self, plan: Plan, chunk: Chunk) -> None:
        """What of a chunk was computed before: by its request, or by anybody while the prefix cache held it."""
        request = chunk.request
        if chunk.start < request.repeats_until:
            plan.recomputed += min(chunk.start + chunk.tokens, request.repeats_until) - chunk.start
        elif request.holding.cached_anew:
            missed = min(chunk.tokens, request.holding.cached_anew * self._size)
            plan.missed += missed
            request.missed_tokens += missed
        request.holding.cached_anew = 0

    def complete(self, plan: Plan, now: float) -> list[Request]:
        """The plan, which has advanced, ended at `now`. Returns who finished."""
        if self._token_budget is not None:
            self._token_budget.ended(plan, now)
        for request in plan.first_tokens:
            request.first_token = now
        retention = self.retention
        if retention is not None:
            retention.expire(now)  # before others give back blocks, as had it been asked at every step
        for request in plan.ending:
            request.finish = now
            self._ended.remove(request)
            if request.kept:
                self.remote.kept[request] = None
                self._running.pop(request, None)
            elif retention is not None and request.session is not None:
                retention.answered(request)
                self._running.pop(request, None)
            elif request in self._running:  # it may have been preempted with its last token under way
                if self.offload is None or not self.offload.keeps(request, now):
                    self.pool.release(request.holding)
                del self._running[request]
            if self.batches is not None:
                self.batches.leaves(request)
        if self.offload is not None:
            self.offload.completed(plan)
        return plan.ending

    def withdraw(self, request: Request) -> bool:
        """The client of a request has gone: take it from the queue if it waits there; whether it did."""
        if self._waiting.remove(request):
            if self._service is not None:
                self._service.withdrawn(request)
        elif not self.remote.drop(request):
            return False
        self.swap.drop(request)
        if self.offload is not None:
            self.offload.dropped(request)
        return True

    def abort(self, request: Request, plan: Plan | None, now: float) -> int:
        """The client of a request that was admitted has gone: at `now`, where a step ends, it gives back its seat and
        its blocks, of which the prefix cache keeps the full ones.

        `plan` is the step that has advanced and not completed: it computes the request all the same, and nobody gets
        what comes of it (vLLM, `Scheduler.finish_requests` and `update_from_output`). No other step is scheduled.
        Returns how many tokens it had in the KV cache.
        """
        if self.retention is not None:
            self.retention.expire(now)
        if plan is not None and request in plan.first_tokens:
            plan.first_tokens.remove(request)
        if self.batches is not None:
            self.batches.leaves(request)
        if self._adapters is not None and request not in self._ended:
            self._adapters.leaves(request)
        if request in self._ended:
            assert plan is not None
            self._ended.remove(request)
            plan.ending.remove(request)
            if request not in self._running:  # it was preempted with its last token under way
                if request.kept:
                    self.pool.release(request.holding)
                return 0
            tokens = request.prompt_tokens + request.output_tokens - 1
        elif request in self._prefilling:
            tokens = request.computed
            del self._prefilling[request]
        else:
            tokens = self.context(request)
            self._batch.stop(request)
        del self._running[request]
        self.pool.release(request.holding)
        return tokens

    # Waiting requests.

    def _admit(self, plan: Plan, now: float, joins: bool = True) -> None:
        """Who waits; and with `joins` who has a prompt that another engine computed, before them."""
        config, offload = self.config, self.offload
        if joins and self.remote.ready and len(self._running) < config.max_num_seqs:
            self._join_ready(plan, now)
        while self._waiting and plan.budget and len(self._running) < config.max_num_seqs:
            request = self._waiting.head()
            if request is None:
                break
            hit = self.pool.find(request.holding, request.prompt_tokens if request.remote else request.target)
            if request.remote:
                needed = request.prompt_tokens + request.generated
                if self._no_evict:
                    needed = self._tokens_to_the_end(request)
                if not self._take_blocks(plan, request, hit, hit.tokens, needed):
                    break
                self.remote.expect(self._waiting.pop(), hit)
                if self._service is not None:
                    self._service.admitted(request)
                continue
            if offload is not None and (found := offload.find(request, hit)) is not None:
                if found.coming or not self._take_blocks(plan, request, hit, hit.tokens, request.target):
                    offload.refused(request, hit)
                    break
                offload.fetch(self._waiting.pop(), found)
                self.remote.fetches(request)
                continue
            start = hit.tokens
            if request.swapped is not None:
                start = max(start, request.swapped.tokens)
            wanted = min(request.target - start, self._chunk_limit)
            if wanted > plan.budget and not config.enable_chunked_prefill:
                break
            tokens = min(wanted, plan.budget)
            needed = request.target if config.scheduler_reserve_full_isl else start + tokens
            if self._no_evict:
                needed = self._tokens_to_the_end(request)
            if not self._take_blocks(plan, request, hit, start + tokens, needed):
                break
            self._waiting.pop()
            if offload is not None:
                offload.used(request)
            self._seat(request)
            self._prefilling[request] = None
            if self._service is not None:
                self._service.admitted(request)
            if request.first_scheduled is None:
                request.first_scheduled = now
                request.cached_tokens = hit.tokens
                if request.kept:
                    self.remote.began(request)
            else:
                plan.resumed = [*plan.resumed, request]
            if request.swapped is not None and (copy := self.swap.restore(request, hit.tokens // self._size)):
                plan.swapped_in = [*plan.swapped_in, copy]
            plan.budget -= tokens
            plan.chunks.append(Chunk(request, start, tokens))

    def _tokens_to_the_end(self, request: Request) -> int:
        waiting_for_blocks = (*self.remote.coming, *self.remote.ready)
        return tokens_to_the_end(request, self._batch, (*self._prefilling, *waiting_for_blocks), self._size)

    def _take_blocks(self, plan: Plan, request: Request, hit: Hit, tokens: int, needed: int) -> bool:
        """Whether it got them; if not, the plan knows who was refused."""
        if self.retention is None:
            got = self.pool.admit(request.holding, hit, tokens, needed)
        else:
            got = self.retention.admit(request, hit, tokens, needed)
        if not got and hit.tokens:
            plan.blocked = BlockedHead(request.holding, hit)
        return got
