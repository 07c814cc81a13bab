"""The decoding requests of one engine, counted and not visited, so that a step does the same work for few and many.

All advance together: at step `step` a request has computed `offset + step` tokens, and nothing in it changes from one
step to the next. What a step needs of them are sums: how many they are, how many tokens they have computed, how many
stand at a block's edge. Who finishes next is the top of a heap.

Their blocks are taken from the pool by count. Whose they are is settled when somebody asks, or when a request stops.
"""

from heapq import heappop, heappush

from sim.engine.context_spread import ContextSpread
from sim.engine.kv_pool import KvPool
from sim.engine.ordering.service import Service
from sim.engine.plan import Plan
from sim.engine.request import Request


class DecodeBatch:
    """`start` and `stop` say who decodes; `advance` takes steps. Others read what is public, and set nothing."""

    full = 0  # how many of them hold all the tokens that they may, where there is a limit: they take no more blocks

    def __init__(self, pool: KvPool, block_size: int, *, spread: bool, service: Service | None = None) -> None:
        """`spread`: whether it can say how unequal the contexts are. `service` is told who decodes."""
        self.step = 0  # the one that is scheduled next
        self.count = 0  # how many decode
        self.kv_tokens = 0  # that they have computed, summed
        self.at_edge = [0] * block_size  # [s % block_size]: how many need a new block at step s
        self.latest_admission = 0  # none of them was admitted after this one
        self.blocks_to_come = 0  # that they take of a paged pool until all have their last token
        self.spread = ContextSpread() if spread else None
        self._service = service
        if service is not None:
            service.batch = self
        self._pool = pool
        self._size = block_size
        self._unsettled = pool.take(0)  # blocks of which it is not yet said whose they are
        self._finishing: list[tuple[int, int, Request]] = []  # heap of (finish_step, admission, request)

    def context(self, request: Request) -> int:
        """Tokens of a decoding request in the KV cache before the next step."""
        return request.offset + self.step

    def start(self, request: Request) -> None:
        """It decodes from the next step on; its prompt is computed and its next token known."""
        request.offset = request.target - self.step
        request.finish_step = self.step - 1 + request.output_tokens - request.generated
        heappush(self._finishing, (request.finish_step, request.admission, request))
        self.at_edge[-request.offset % self._size] += 1
        last = request.target + request.output_tokens - request.generated
        self.blocks_to_come += -(-last // self._size) - request.holding.blocks
        self.count += 1
        self.kv_tokens += request.target
        if self.spread is not None:
            self.spread.add(request)
        self.latest_admission = max(self.latest_admission, request.admission)
        if self._service is not None:
            self._service.starts(request)

    def stop(self, request: Request, granted: int = 0) -> None:
        """It decodes no more: it has its last token, or is preempted. It has blocks for `granted` tokens more than it
        has computed."""
        computed = request.offset + self.step
        left = request.finish_step - self.step + 1
        request.generated = request.output_tokens - left
        self.at_edge[-request.offset % self._size] -= 1
        self.count -= 1
        self.kv_tokens -= computed
        if self.spread is not None:
            self.spread.remove(request)
        if self._service is not None:
            self._service.stops(request, request.finish_step)
        request.finish_step = -1
        self.settle(request, computed + granted)
        self.blocks_to_come -= -(-(computed + left) // self._size) - request.holding.blocks
        self._pool.cache_full_blocks(request.holding, computed)

    def take(self, blocks: int) -> None:
        """Take so many for the next step, for those who stand at an edge."""
        self._unsettled += self._pool.take(blocks)
        self.blocks_to_come -= blocks

    def settle(self, request: Request, tokens: int) -> None:
        """Say which blocks are this request's, for so many tokens in all."""
        missing = self._pool.blocks_missing(request.holding, tokens)
        if missing > 0:
            request.holding.tail += self._unsettled[-missing:]
            del self._unsettled[-missing:]
            request.holding.blocks += missing

    def horizon(self, free: int) -> int:
        """In how many steps, from the next one on, somebody finishes, or as many as `free` blocks suffice for. The
        next one's blocks are taken already; somebody decodes."""
        finishing = self._finishing
        while finishing[0][2].finish_step != finishing[0][0]:
            heappop(finishing)  # it was preempted or delayed
        steps = finishing[0][0] - self.step + 1
        # Every sequence crosses one block edge in each `block_size` steps.
        growing = self.count - self.full
        if growing * ((steps - 1) // self._size + 1) <= free:
            return steps
        whole = min((steps - 1) // self._size, free // growing)
        free -= whole * growing
        reach = whole * self._size + 1
        while reach < steps:
            free -= self.at_edge[(self.step + reach) % self._size]
            if free < 0:
                break
            reach += 1
        return reach

    def blocks_taken(self, steps: int) -> int:
        """By so many steps, but for the first, which had its blocks when it was scheduled."""
        whole, rest = divmod(steps - 1, self._size)
        begin = (self.step + 1) % self._size
        return whole * (self.count - self.full) + sum((self.at_edge * 2)[begin : begin + rest])

    def advance(self, plan: Plan, steps: int) -> None:
        """The plan's step is computed, `steps` times over. Who has his last token by it stops, and enters
        `plan.ending`."""
        if steps > 1 and (blocks := self.blocks_taken(steps)):
            self._unsettled += self._pool.take(blocks)
            self.blocks_to_come -= blocks
        self.step += steps
        self.kv_tokens += plan.decodes * steps
        for request in plan.starved:
            self._delay(request)
        finishing = self._finishing
        while finishing and finishing[0][0] < self.step:
            finish_step, _, request = heappop(finishing)
            if request.finish_step == finish_step:
                self.stop(request)
                plan.ending.append(request)

    def _delay(self, request: Request) -> None:
        """It was left out of a step that the others ran."""
        self.at_edge[-request.offset % self._size] -= 1
        if self.spread is not None:
            self.spread.remove(request)
        request.offset -= 1
        if self._service is not None:
            self._service.delayed(request)
        if self.spread is not None:
            self.spread.add(request)
        self.at_edge[-request.offset % self._size] += 1
        request.finish_step += 1
        heappush(self._finishing, (request.finish_step, request.admission, request))
