"""The sums of a batch whose requests hold so many tokens at most are those of its requests, however they step."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sim.engine.block_pool import Holding
from sim.engine.plan import Plan
from sim.engine.pruning.capped_batch import CappedBatch
from sim.engine.pruning.capped_pool import CappedPool
from sim.engine.request import Request

SIZE = 4


class CappedMachine(RuleBasedStateMachine):
    """Requests start, full or not, step together, are left out of a step, and stop before their end."""

    @initialize(most=st.integers(1, 6), blocks=st.integers(6, 40))
    def begin(self, most: int, blocks: int) -> None:
        self.most = SIZE * most
        self.pool = CappedPool(blocks, SIZE, self.most, 0)
        self.batch = CappedBatch(self.pool, SIZE, self.most)
        self.computed: dict[Request, int] = {}
        self.left: dict[Request, int] = {}  # tokens to come
        self.admissions = 0

    @rule(prompt=st.integers(1, 30), output=st.integers(2, 40))
    def start(self, prompt: int, output: int) -> None:
        request = Request(self.admissions, 0.0, prompt, output)
        request.holding = Holding()
        if self.pool.blocks_missing(request.holding, prompt) > self.pool.free:
            return
        self.admissions += 1
        request.admission = self.admissions
        request.generated = 1
        self.pool.hold(request.holding, prompt)
        self.batch.start(request)
        self.computed[request], self.left[request] = prompt, output - 1

    def crossing(self, step: int, starved: list[Request]) -> int:
        """Who needs a block so many steps after the next one."""
        running = [tokens + step for request, tokens in self.computed.items() if request not in starved]
        return sum(tokens % SIZE == 0 and tokens < self.most for tokens in running)

    @precondition(lambda self: self.computed)
    @rule(steps=st.integers(1, 40), left_out=st.integers(0))
    def run(self, steps: int, left_out: int) -> None:
        """A leap; or a step without those whose bit is set in `left_out`."""
        starved = [request for i, request in enumerate(self.computed) if left_out >> i & 1]
        blocks = self.crossing(0, starved)
        if blocks > self.pool.free:
            return
        self.batch.take(blocks)
        steps = 1 if starved else min(steps, self.batch.horizon(self.pool.free))
        plan = Plan(0)
        full = [request for request in starved if self.computed[request] >= self.most]
        plan.decodes, plan.full, plan.starved = self.batch.count - len(starved), self.batch.full - len(full), starved
        self.batch.advance(plan, steps)
        for request in self.computed:
            if request not in starved:
                self.computed[request] += steps
                self.left[request] -= steps
        assert set(plan.ending) == {request for request, left in self.left.items() if not left}
        for request in plan.ending:
            self.gone(request)

    @precondition(lambda self: self.computed)
    @rule(which=st.integers(0))
    def preempt(self, which: int) -> None:
        request = list(self.computed)[which % len(self.computed)]
        self.batch.stop(request)
        self.gone(request)

    def gone(self, request: Request) -> None:
        assert request.generated == request.output_tokens - self.left.pop(request)
        held = -(-min(self.computed.pop(request), self.most) // SIZE)
        assert len(request.holding.block_table()) == held
        self.pool.release(request.holding)

    @invariant()
    def sums_are_those_of_the_requests(self) -> None:
        if not hasattr(self, "batch"):
            return
        batch, contexts = self.batch, list(self.computed.values())
        held = [min(tokens, self.most) for tokens in contexts]
        assert (batch.count, batch.kv_tokens) == (len(contexts), sum(held))
        assert batch.full == sum(tokens >= self.most for tokens in contexts)
        assert [batch.context(request) for request in self.computed] == contexts
        for i in range(SIZE):
            stand = sum((tokens + i) % SIZE == 0 and tokens < self.most for tokens in contexts)
            assert batch.at_edge[(batch.step + i) % SIZE] == stand
        assert self.pool.held == sum(-(-tokens // SIZE) for tokens in held), "every block is somebody's"

    @precondition(lambda self: self.computed)
    @rule(free=st.integers(0, 60))
    def ask_horizon(self, free: int) -> None:
        """Until somebody ends, or is full, or a block is missing."""
        steps = min(self.left.values())
        filling = [self.most - tokens for tokens in self.computed.values() if tokens < self.most]
        steps = min([steps, *filling])
        reach, left = 1, free
        while reach < steps and (left := left - self.crossing(reach, [])) >= 0:
            reach += 1
        assert self.batch.horizon(free) == reach


CappedMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestCapped = CappedMachine.TestCase
