"""The running requests of one engine: what each computes in a step, and who gives way when blocks run out.

The rules are vLLM V1's (`vllm/v1/core/sched/scheduler.py`): they share the step's token budget in order of admission,
prompts in chunks; whoever is preempted loses his blocks and waits again, before or among those who wait already.

The work of a step does not grow with the batch: decoding requests are counted, not visited (`decode_batch.py`). Only
where the budget or the blocks do not suffice for all are the running requests visited in order.
"""

import sys

from calibrate.skew import Spread
from sim.engine.adapter_queue import AdapterQueue
from sim.engine.batching.make import batch_queue
from sim.engine.block_pool import BlockPool
from sim.engine.config import EngineConfig
from sim.engine.decode_batch import DecodeBatch
from sim.engine.kv_pool import make_pool
from sim.engine.offload.kv_offload import KvOffload
from sim.engine.ordering import ORDERINGS
from sim.engine.ordering.waiting_queue import WaitingQueue
from sim.engine.plan import Chunk, Plan
from sim.engine.pruning.capped_batch import CappedBatch
from sim.engine.request import Request
from sim.engine.session_retention import SessionRetention
from sim.engine.speculative.batch import SpeculativeBatch
from sim.engine.swap_space import SwapSpace


class RunningRequests:
    """A `Scheduler` without those who wait: it knows their queue only to put back into it whom it preempts."""

    def __init__(self, config: EngineConfig, *, spread: bool = True) -> None:
        """`spread`: whether plans say how unequal the decoding contexts are, which some step times do not ask."""
        self.config = config
        self._size = config.block_size
        self.pool = make_pool(config)
        self.swap = SwapSpace(config.swap_blocks if config.preemption != "recompute" else 0)
        self.offload: KvOffload | None = None
        if config.kv_offload is not None:
            self.offload = KvOffload(config.kv_offload, self.pool, self._size, config.swap_blocks)
        self.retention: SessionRetention | None = None
        if config.session_retention is not None:
            assert isinstance(self.pool, BlockPool)
            self.retention = SessionRetention(config.session_retention, self.pool)
        make_queue, self._choose_victim, self._service = ORDERINGS[config.scheduling_policy](config)
        self._adapters = None if config.max_loras is None else AdapterQueue(make_queue, config.max_loras)
        self._waiting: WaitingQueue = make_queue() if self._adapters is None else self._adapters
        self._running: dict[Request, None] = {}  # in order of admission
        # None: who waits may join every step.
        self.batches = batch_queue(config, make_queue, self._waiting, self._running)
        if self.batches is not None:
            self._waiting = self.batches
        self._prefilling: dict[Request, None] = {}  # those of them whose prompt is not computed yet
        self.speculation: SpeculativeBatch | None = None  # the batch below, where it guesses tokens
        if config.speculative is not None:
            self.speculation = SpeculativeBatch(self.pool, self._size, config.speculative, spread=spread)
        # Tokens that one sequence holds at most.
        most = config.most_tokens
        self._most = sys.maxsize if most is None else most
        # The others, but for the ended.
        if most is not None:
            self._batch: DecodeBatch = CappedBatch(self.pool, self._size, most, service=self._service)
        else:
            self._batch = self.speculation or DecodeBatch(self.pool, self._size, spread=spread, service=self._service)
        self._admissions = 0
        self._budget = config.max_num_batched_tokens  # of the next step
        self._chunk_limit = config.long_prefill_token_threshold or config.max_num_batched_tokens
        self._ended: set[Request] = set()  # with their last token under way

    @property
    def running_count(self) -> int:
        return len(self._running)

    @property
    def tokens_held(self) -> int:
        """Of the running requests, in the KV cache."""
        prefilling = sum(request.computed for request in self._prefilling)
        ended = sum(request.prompt_tokens + request.output_tokens - 1 for request in self._ended)
        return self._batch.kv_tokens + prefilling + ended

    def has(self, request: Request) -> bool:
        """Whether it was admitted and has not left."""
        return request in self._running or request in self._ended

    def decoding(self, plan: Plan) -> list[Request]:
        """The requests of which `plan` computes one token."""
        if plan.paused:
            return []
        idle = self._prefilling.keys() | self._ended
        out = [request for request in self._running if request not in idle]
        if plan.starved:
            out = [request for request in out if request not in plan.starved]
        return out

    def context(self, request: Request) -> int:
        """Tokens of a decoding request in the KV cache before the step that is scheduled."""
        return self._batch.context(request)

    def block_table(self, request: Request) -> list[int]:
        """Physical ids of a running request's blocks, in token order, for the step that is scheduled."""
        if request not in self._prefilling:
            self._batch.settle(request, self.context(request) + 1)
        return request.holding.block_table()

    def reset(self, plan: Plan, now: float) -> list[Request]:
        """The engine is started anew, at `now`, instead of running `plan`, which was scheduled last.

        Every running request is preempted, and neither the prefix cache nor an idle session keeps anything. Host memory
        keeps the copies that were made before; those that the plan would have made are lost. The plan is left without
        work, to be advanced and completed as any other. Returns who was preempted beyond the plan's own victims.
        """
        for victim in plan.victims:
            self.swap.drop(victim)
        for chunk in plan.chunks:
            chunk.request.holding.cached_anew = 0
        decoding = set(self.decoding(plan))
        lost = [request for request in reversed(self._running) if request not in self._ended]
        for request in list(reversed(self._running)):
            self._take_out(request, int(request in decoding))
        if self.retention is not None:
            self.retention.expire(now)
            self.retention.drop_all("restart")
        self.pool.forget()
        plan.decodes = plan.full = plan.kv_tokens = 0
        plan.spread = None
        plan.chunks, plan.starved, plan.swapped_out, plan.swapped_in = [], [], (), ()
        plan.preempted += len(lost)
        return lost

    # What each gets of a step.

    def _grant_all(self, prompts: bool = True) -> Plan | None:
        """Every running request gets what it asks, with `prompts` or without; None, with nothing changed but idle
        sessions given up, if budget or blocks are too few."""
        if self.speculation is not None:
            return None  # who decodes may ask for any number of tokens
        batch = self._batch
        plan = Plan(self._budget - batch.count)
        blocks = batch.at_edge[batch.step % self._size]
        if not self._prefilling or not prompts:
            if blocks > self.pool.free and not self._make_room(blocks):
                return None
        else:
            missing = blocks
            for request in self._prefilling:
                wanted = min(request.target - request.computed, self._chunk_limit)
                tokens = min(wanted, plan.budget)
                if tokens < wanted and request.admission < batch.latest_admission:
                    return None  # those who were admitted later must not be served first
                if tokens:
                    plan.budget -= tokens
                    plan.chunks.append(Chunk(request, request.computed, tokens))
                    missing += self.pool.blocks_missing(request.holding, request.computed + tokens)
            if missing > self.pool.free and not self._make_room(missing):
                return None
            for chunk in plan.chunks:
                self.pool.hold(chunk.request.holding, chunk.start + chunk.tokens)
                self.pool.cache_full_blocks(chunk.request.holding, chunk.start + chunk.tokens)
        if blocks:
            batch.take(blocks)
        plan.decodes, plan.full, plan.kv_tokens = batch.count, batch.full, batch.kv_tokens
        if batch.spread is not None:
            plan.spread = batch.spread.at(batch.step, batch.count)
        return plan

    def _grant_prompts(self) -> Plan:
        """Prompts alone, in order of admission, until budget or blocks are too few: nobody is preempted for them."""
        plan = Plan(self._budget)
        for request in self._prefilling:
            tokens = min(request.target - request.computed, self._chunk_limit, plan.budget)
            missing = self.pool.blocks_missing(request.holding, request.computed + tokens)
            if not tokens or (missing > self.pool.free and not self._make_room(missing)):
                break
            self.pool.hold(request.holding, request.computed + tokens)
            self.pool.cache_full_blocks(request.holding, request.computed + tokens)
            plan.budget -= tokens
            plan.chunks.append(Chunk(request, request.computed, tokens))
        return plan

    def _grant_in_order(self, prompts: bool = True) -> Plan:
        """Serve the running requests in order of admission, with `prompts` or without, preempting while blocks are
        missing."""
        batch, speculation = self._batch, self.speculation
        plan = Plan(self._budget)
        granted: dict[Request, int] = {}
        blocked = False
        for request in list(self._running):
            if request not in self._running or request in self._ended or self._elsewhere(request):
                continue  # preempted meanwhile, or nothing left to compute
            decoding = request not in self._prefilling
            if not decoding and not prompts:
                continue
            computed = self.context(request) if decoding else request.computed
            if not decoding:
                wanted = min(request.target - computed, self._chunk_limit)
            else:
                wanted = 1 if speculation is None else speculation.wanted(request)
            tokens = 0 if blocked else min(wanted, plan.budget)
            if not tokens:
                if decoding:
                    plan.starved.append(request)
                continue
            if decoding and speculation is not None:
                missing = speculation.blocks_missing(request, tokens)
            elif decoding:
                missing = int(computed % self._size == 0 and computed < self._most)
            else:
                missing = self.pool.blocks_missing(request.holding, computed + tokens)
            if missing > self.pool.free:
                self._make_room(missing)
            while missing > self.pool.free and request in self._running:
                victim = self._choose_victim(self._running)
                plan.budget += granted.get(victim, 0)
                self._preempt(victim, granted.pop(victim, 0), plan)
                plan.preempted += 1
            if request not in self._running:
                blocked = True  # it gave up its own blocks; vLLM ends the round here
                continue
            if decoding and speculation is not None:
                speculation.grant(request, tokens)
            elif decoding:
                batch.take(missing)
            else:
                self.pool.hold(request.holding, computed + tokens)
            plan.budget -= tokens
            granted[request] = tokens
        for request, tokens in granted.items():
            if request in self._prefilling:
                # Only now is it certain that the chunk runs and its blocks will hold what their keys say.
                self.pool.cache_full_blocks(request.holding, request.computed + tokens)
                plan.chunks.append(Chunk(request, request.computed, tokens))
        # A victim may have been left out before it was chosen.
        plan.starved = [request for request in plan.starved if request in self._running]
        plan.decodes = batch.count - len(plan.starved)
        plan.full = batch.full - sum(self.context(request) >= self._most for request in plan.starved)
        plan.kv_tokens = batch.kv_tokens - sum(min(self.context(request), self._most) for request in plan.starved)
        if batch.spread is not None and not plan.starved:
            plan.spread = batch.spread.at(batch.step, batch.count)
        elif batch.spread is not None and plan.decodes:
            contexts = [self.context(request) for request in self.decoding(plan)]
            plan.spread = Spread(sum(context * context for context in contexts), max(contexts))
        return plan

    def _elsewhere(self, request: Request) -> bool:
        """Whether it decodes in another batch, where an engine has several."""
        return False

    def _make_room(self, blocks: int) -> bool:
        """Whether so many blocks are free once idle sessions have given up theirs."""
        return self.retention is not None and self.retention.make_room(blocks)

    def _preempt(self, request: Request, granted: int, plan: Plan) -> None:
        """Free the blocks of a request; all its tokens so far become its prompt. `granted`: tokens of this step."""
        if request not in self._ended:
            plan.victims = [*plan.victims, request]
        self._take_out(request, granted, plan)

    def _take_out(self, request: Request, granted: int, saving: Plan | None = None) -> None:
        """The same; what it has computed is saved for it, in the cache and in copies that go into the plan `saving`."""
        request.preemptions += 1
        del self._running[request]
        if request in self._ended:
            if not request.kept:
                self.pool.release(request.holding)  # its last token comes all the same
            return
        if self._adapters is not None:
            self._adapters.leaves(request)
        computed = request.computed
        if request in self._prefilling:
            del self._prefilling[request]
        else:
            computed = self.context(request)
            self._batch.stop(request, granted)
        request.repeats_until = max(request.repeats_until, computed)
        if saving is not None:
            blocks = -(-computed // self._size)
            if copy := self.swap.save(request, computed, blocks):
                saving.swapped_out = [*saving.swapped_out, copy]
            elif self.offload is not None:
                self.offload.preempted(request, computed, saving)
        resumable = computed if self.config.enable_prefix_caching else 0
        self.pool.release(request.holding, resumable_tokens=resumable)
        request.target = request.prompt_tokens + request.generated
        request.computed = 0
        self._waiting.put_back(request)
        if self._service is not None:
            self._service.waits_again(request)
