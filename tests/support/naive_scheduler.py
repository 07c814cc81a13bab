"""The rules of vLLM V1, written the slow and obvious way: every request, every token and every block is visited.

The real scheduler counts instead; the tests hold the two to the same decisions.
"""

from dataclasses import dataclass, field

from sim.engine.config import EngineConfig
from sim.engine.contiguous_pool import reserved_slots


@dataclass
class Block:
    number: int
    key: tuple | None = None
    holders: int = 0


@dataclass(eq=False)
class NaiveRequest:
    request_id: int
    arrival: float
    prompt: int
    output: int
    ids: tuple = ()
    priority: int = 0
    computed: int = 0
    offered: int = 0  # blocks that were full and offered to the cache
    generated: int = 0
    blocks: list = field(default_factory=list)
    first_scheduled: float | None = None
    first_token: float | None = None
    finish: float | None = None
    cached: int = 0
    preemptions: int = 0
    swapped: int = 0  # tokens in host memory
    session: str | None = None
    adapter: str | None = None

    @property
    def ended(self) -> bool:
        """All its tokens are computed, be the last one still under way."""
        return self.generated == self.output

    @property
    def known(self) -> int:
        return self.prompt + self.generated

    def key(self, block: int) -> tuple:
        # What the trace does not name, nobody else can have.
        return ("trace", self.ids[block]) if block < len(self.ids) else (self.request_id, block)


class NaiveScheduler:
    """Prefix ids stand for one block each."""

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        # Free blocks, longest free first; as good as any number where a request has a range of its own instead.
        blocks = config.kv_blocks - config.reserved_blocks if config.kv_reservation == "paged" else 1000
        self.queue = [Block(i) for i in range(blocks)]
        self.cached: dict[tuple | None, Block] = {}
        self.waiting: list[NaiveRequest] = []
        self.running: list[NaiveRequest] = []
        self.host = config.swap_blocks  # free blocks of host memory
        self.idle: list[tuple[NaiveRequest, float]] = []  # last turns whose blocks are kept, and since when
        self.given_up: list[tuple[str | None, str]] = []  # sessions, and why
        self.slots: list[NaiveRequest | None] = [None] * config.kv_blocks * config.block_size  # where they are reserved

    def add(self, request: NaiveRequest) -> None:
        self.waiting.append(request)

    def _order_waiting(self) -> None:
        if self.config.scheduling_policy == "priority":
            self.waiting.sort(key=lambda r: (-r.priority, r.arrival, r.request_id))

    def schedule(self, now: float) -> dict[NaiveRequest, int]:
        size, budget = self.config.block_size, self.config.max_num_batched_tokens
        limit = self.config.long_prefill_token_threshold or budget
        granted: dict[NaiveRequest, int] = {}
        preempted = False
        self._expire(now)
        for request in list(self.running):
            if request not in self.running or request.ended:
                continue
            tokens = min(request.known - request.computed, limit, budget)
            if not tokens:
                continue
            missing = -(-(request.computed + tokens) // size) - len(request.blocks)
            while missing > len(self.queue) and self.idle:
                self._give_up(self._idle_victim(), "pressure")
            while missing > len(self.queue) and request in self.running:
                if self.config.scheduling_policy == "priority":
                    victim = max(self.running, key=lambda r: (-r.priority, r.arrival, r.request_id))
                else:
                    victim = self.running[-1]
                budget += granted.pop(victim, 0)
                self.running.remove(victim)
                self._free(victim)
                out = -(-victim.computed // size)
                if 0 < out <= self.host and not victim.ended:
                    self.host -= out
                    victim.swapped = victim.computed
                victim.computed = 0
                victim.preemptions += 1
                if not victim.ended:
                    self.waiting.insert(0, victim)
                preempted = True
            if request not in self.running:
                break
            self._take(request, missing)
            granted[request] = tokens
            budget -= tokens
        for request, tokens in granted.items():
            self._cache(request, request.computed + tokens)
        while not preempted and self.waiting and budget and len(self.running) < self.config.max_num_seqs:
            self._order_waiting()
            request = next((each for each in self.waiting if self._adapter_may_run(each, granted)), None)
            if request is None:
                break
            hit = self._find(request) if self.config.enable_prefix_caching else []
            start = max(len(hit) * size, request.swapped)
            tokens = min(request.known - start, limit)
            if tokens > budget and not self.config.enable_chunked_prefill:
                break
            tokens = min(tokens, budget)
            missing = -(-(start + tokens) // size) - len(hit)
            whole = -(-request.known // size) - len(hit)
            needed = max(missing, whole) if self.config.scheduler_reserve_full_isl else missing
            while needed + sum(not block.holders for block in hit) > len(self.queue) and self.idle:
                self._give_up(self._idle_victim(spared=request.session), "pressure")
            if needed + sum(not block.holders for block in hit) > len(self.queue):
                break
            if self.config.kv_reservation != "paged" and not self._reserve(request):
                break
            self.waiting.remove(request)
            self.running.append(request)
            self.host += -(-request.swapped // size)
            request.swapped = 0
            for block in hit:
                if not block.holders:
                    self.queue.remove(block)
                block.holders += 1
            request.blocks = list(hit)
            for turn, _ in list(self.idle):  # what was kept of its session is its own now
                if request.session is not None and turn.session == request.session:
                    self._give_back(turn)
            request.offered = len(hit)
            request.computed = start
            self._take(request, missing)
            self._cache(request, start + tokens)
            if request.first_scheduled is None:
                request.first_scheduled, request.cached = now, start
            granted[request] = tokens
            budget -= tokens
        return granted

    def _adapter_may_run(self, request: NaiveRequest, granted: dict[NaiveRequest, int]) -> bool:
        adapters = {each.adapter for each in granted if each.adapter is not None}
        limit = self.config.max_loras
        return limit is None or request.adapter in {None, *adapters} or len(adapters) < limit

    def advance(self, granted: dict[NaiveRequest, int]) -> list[tuple[NaiveRequest, bool]]:
        """Count the step as computed; returns those that it gives a token, and whether it is their last."""
        emitting = []
        for request, tokens in granted.items():
            request.computed += tokens
            if request.computed == request.known:
                request.generated += 1
                emitting.append((request, request.ended))
        return emitting

    def complete(self, emitting: list[tuple[NaiveRequest, bool]], now: float) -> None:
        """The step has ended."""
        self._expire(now)
        for request, last in emitting:
            if request.first_token is None:
                request.first_token = now
            if last:
                request.finish = now
                if request in self.running:
                    self.running.remove(request)
                    if self.config.session_retention is None or request.session is None:
                        self._free(request)
                    else:
                        self._keep(request, now)

    def abort(self, request: NaiveRequest, emitting: list[tuple[NaiveRequest, bool]], now: float) -> None:
        """Its client has gone; `emitting` is what `advance` said of the step under way, whose output nobody gets."""
        self._expire(now)
        emitting[:] = [entry for entry in emitting if entry[0] is not request]
        if request in self.waiting:
            self.waiting.remove(request)
            self.host += -(-request.swapped // self.config.block_size)
            request.swapped = 0
        elif request in self.running:
            self.running.remove(request)
            self._free(request)

    def _keep(self, request: NaiveRequest, now: float) -> None:
        for turn, _ in list(self.idle):
            if turn.session == request.session:
                self._give_back(turn)
        self.idle.append((request, now))
        most = self.config.session_retention.max_sessions
        if most is not None and len(self.idle) > most:
            self._give_up(self._idle_victim(), "max_sessions")

    def _expire(self, now: float) -> None:
        settings = self.config.session_retention
        for turn, since in list(self.idle):
            if settings.ttl is not None and since + settings.ttl <= now:
                self._give_up(turn, "ttl")

    def _idle_victim(self, spared: str | None = None) -> NaiveRequest:
        turns = [turn for turn, _ in self.idle if turn.session != spared] or [turn for turn, _ in self.idle]
        if self.config.session_retention.policy == "priority":
            return min(turns, key=lambda turn: turn.priority)  # of equals the first
        return turns[0]

    def _give_up(self, turn: NaiveRequest, reason: str) -> None:
        self.given_up.append((turn.session, reason))
        self._give_back(turn)

    def _give_back(self, turn: NaiveRequest) -> None:
        self.idle = [entry for entry in self.idle if entry[0] is not turn]
        self._free(turn)

    def _reserve(self, request: NaiveRequest) -> bool:
        config = self.config
        wanted = reserved_slots(config.kv_reservation, request.prompt, request.output, config.max_model_len)
        for start in range(len(self.slots) - wanted + 1):
            if not any(self.slots[start : start + wanted]):
                self.slots[start : start + wanted] = [request] * wanted
                return True
        return False

    def _find(self, request: NaiveRequest) -> list[Block]:
        hit = []
        for index in range((request.known - 1) // self.config.block_size):
            block = self.cached.get(request.key(index))
            if block is None:
                break
            hit.append(block)
        return hit

    def _take(self, request: NaiveRequest, count: int) -> None:
        for _ in range(count):
            block = self.queue.pop(0)
            if self.cached.get(block.key) is block:
                del self.cached[block.key]
            block.key, block.holders = None, 1
            request.blocks.append(block)

    def _cache(self, request: NaiveRequest, tokens: int) -> None:
        full = tokens // self.config.block_size
        for index in range(request.offered, full):
            block, key = request.blocks[index], request.key(index)
            own = key[0] == request.request_id  # computed again after a preemption: the new copy takes the name
            if own or key not in self.cached:
                block.key = key
                self.cached[key] = block
        request.offered = full

    def _free(self, request: NaiveRequest) -> None:
        self.slots = [None if owner is request else owner for owner in self.slots]
        for block in reversed(request.blocks):
            block.holders -= 1
            if not block.holders:
                self.queue.append(block)
        request.blocks = []
