"""The sums of a decode batch are those of its requests, one by one, whatever steps they take."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from sim.engine.block_pool import BlockPool, Holding
from sim.engine.decode_batch import DecodeBatch
from sim.engine.plan import Plan
from sim.engine.request import Request

SIZE = 4
BLOCKS = 60


class BatchMachine(RuleBasedStateMachine):
    """Requests start, step together, are left out of a step, and stop before their end."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(BLOCKS, SIZE)
        self.batch = DecodeBatch(self.pool, SIZE, spread=True)
        self.computed: dict[Request, int] = {}
        self.generated: dict[Request, int] = {}
        self.admissions = 0

    @rule(prompt=st.integers(1, 20), output=st.integers(2, 40))
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
        self.computed[request], self.generated[request] = prompt, 1

    @precondition(lambda self: self.computed)
    @rule(most=st.integers(1, 40))
    def leap(self, most: int) -> None:
        blocks = self.crossing(0)
        if blocks <= self.pool.free:
            self.batch.take(blocks)
            self.advance(min(most, self.batch.horizon(self.pool.free)), [])

    @precondition(lambda self: self.computed)
    @rule(left_out=st.integers(0))
    def leave_out(self, left_out: int) -> None:
        """Every request whose bit is set in `left_out` is starved."""
        starved = [request for i, request in enumerate(self.computed) if left_out >> i & 1]
        blocks = sum(n % SIZE == 0 for request, n in self.computed.items() if request not in starved)
        if blocks <= self.pool.free:
            self.batch.take(blocks)
            self.advance(1, starved)

    def advance(self, steps: int, starved: list[Request]) -> None:
        plan = Plan(0)
        plan.decodes, plan.starved = self.batch.count - len(starved), starved
        self.batch.advance(plan, steps)
        for request in self.computed:
            if request not in starved:
                self.computed[request] += steps
                self.generated[request] += steps
        ended = {request for request, tokens in self.generated.items() if tokens == request.output_tokens}
        assert set(plan.ending) == ended and len(plan.ending) == len(ended)
        for request in plan.ending:
            self.gone(request)

    @precondition(lambda self: self.computed)
    @rule(which=st.integers(0))
    def preempt(self, which: int) -> None:
        request = list(self.computed)[which % len(self.computed)]
        self.batch.stop(request)
        self.gone(request)

    def gone(self, request: Request) -> None:
        assert request.generated == self.generated.pop(request)
        assert len(request.holding.block_table()) == -(-self.computed.pop(request) // SIZE)
        self.pool.release(request.holding)

    def crossing(self, step: int) -> int:
        """Who needs a block so many steps after the next one."""
        return sum((tokens + step) % SIZE == 0 for tokens in self.computed.values())

    @invariant()
    def sums_are_those_of_the_requests(self) -> None:
        batch, contexts = self.batch, list(self.computed.values())
        assert (batch.count, batch.kv_tokens) == (len(contexts), sum(contexts))
        assert [batch.context(request) for request in self.computed] == contexts
        assert [batch.at_edge[(batch.step + i) % SIZE] for i in range(SIZE)] == [self.crossing(i) for i in range(SIZE)]
        assert batch.spread is not None
        spread = (sum(n * n for n in contexts), max(contexts)) if contexts else None
        assert batch.spread.at(batch.step, batch.count) == spread
        assert all(request.admission <= batch.latest_admission for request in self.computed)
        assert self.pool.held == sum(-(-tokens // SIZE) for tokens in contexts), "every block is somebody's"

    @precondition(lambda self: self.computed)
    @rule(free=st.integers(0, 80))
    def ask_horizon(self, free: int) -> None:
        steps = min(request.output_tokens - tokens for request, tokens in self.generated.items())
        reach, left = 1, free
        while reach < steps and (left := left - self.crossing(reach)) >= 0:
            reach += 1
        assert self.batch.horizon(free) == reach


BatchMachine.TestCase.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)
TestBatch = BatchMachine.TestCase
