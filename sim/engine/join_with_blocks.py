"""Requests that need not wait for all of their prompt to be computed here: another engine did it, or a tier has it.

They wait for the blocks outside the queue (`remote_prompts.py`, `offload/`), and join those who run when all have come.
"""

from sim.engine.config import EngineConfig
from sim.engine.kv_pool import new_holding
from sim.engine.offload.moves import Move
from sim.engine.plan import Chunk, Plan
from sim.engine.remote_prompts import KvConnector, RemotePrompts
from sim.engine.request import Request
from sim.engine.running import RunningRequests


class JoinWithBlocks(RunningRequests):
    """A `Scheduler` without its queue and its steps."""

    def __init__(self, config: EngineConfig, *, spread: bool = True) -> None:
        super().__init__(config, spread=spread)
        self.remote = RemotePrompts(self.pool, self._size)

    def _seat(self, request: Request) -> None:
        """It is admitted."""
        self._admissions += 1
        request.admission = self._admissions
        self._running[request] = None
        if self._adapters is not None:
            self._adapters.runs(request)

    # Prompts that one engine computes for another.

    def connect(self, connector: KvConnector) -> None:
        """`connector` carries their blocks."""
        self.remote.connector = connector

    def cached(self, request: Request) -> int:
        """Prompt tokens that the prefix cache has of a request that is not here."""
        return self.pool.find(new_holding(self.config, request), request.prompt_tokens).tokens

    def received(self, request: Request) -> bool:
        """The blocks that were asked for have come; True if the next step may differ because of it."""
        self.remote.came(request)
        return len(self._running) < self.config.max_num_seqs

    def give_back(self, request: Request) -> bool:
        """Nobody reads the blocks of a request that ended any more, which it kept; True if the next step may differ."""
        del self.remote.kept[request]
        self.pool.release(request.holding)
        return bool(self._waiting)

    def _join_ready(self, plan: Plan, now: float) -> None:
        for request in list(self.remote.ready):
            if not plan.budget or len(self._running) == self.config.max_num_seqs:
                break
            if self._adapters is not None and not self._adapters.may_run(request):
                continue
            if request.remote:
                self.remote.ready.remove(request)
                self._join(request, plan, now)
            elif not self._join_fetched(request, plan, now):
                break

    def _join(self, request: Request, plan: Plan, now: float) -> None:
        """It has its prompt and decodes from this step on."""
        self._seat(request)
        self.remote.join(request, plan, self._batch, now)
        if self.speculation is not None:
            self.speculation.joins(request)

    # Blocks in tiers behind the prefix cache.

    def _join_fetched(self, request: Request, plan: Plan, now: float) -> bool:
        """It has the blocks that it waited for, and those of the rest of its prompt, and computes that from this step
        on; whether it finds enough budget."""
        assert self.offload is not None
        wanted = min(request.target - request.computed, self._chunk_limit)
        if wanted > plan.budget and not self.config.enable_chunked_prefill:
            return False
        self.remote.ready.remove(request)
        self.offload.joined(request)
        self._seat(request)
        self._prefilling[request] = None
        if request.first_scheduled is None:
            request.first_scheduled = now
            request.cached_tokens = request.computed
        else:
            plan.resumed = [*plan.resumed, request]
        tokens = min(wanted, plan.budget)
        plan.budget -= tokens
        plan.chunks.append(Chunk(request, request.computed, tokens))
        self.pool.cache_full_blocks(request.holding, request.computed + tokens)
        return True

    def moved(self, move: Move) -> bool:
        """A copy that was begun beside the steps is done; True if the next step may differ because of it."""
        assert self.offload is not None
        matters, request = self.offload.moved(move)
        if request is not None:
            self.remote.came(request)
        return matters or bool(self._waiting or self.remote.ready)
