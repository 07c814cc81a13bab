"""Blocks are conserved: every one is in the queue or held, once, and comes back."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from sim.engine.block_pool import BlockPool, Holding

BLOCK = 4
BLOCKS = 24


class PoolMachine(RuleBasedStateMachine):
    """Requests come, grow, are preempted and leave in any order; ids of two blocks each."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(BLOCKS, BLOCK)
        self.held: list[tuple[Holding, int]] = []  # with the tokens computed
        self.preempted: list[tuple[Holding, int]] = []
        self.seen: set[int] = set()  # ids of all who were admitted since the pool forgot all

    @rule(group=st.integers(0, 2), common=st.integers(0, 5), tokens=st.integers(1, 48), own=st.integers(10, 10**9))
    def admit_new(self, group: int, common: int, tokens: int, own: int) -> None:
        # An id stands for all tokens up to its end, so behind different prefixes there are different ids.
        chain = (own * 10 + group) * 10 + common
        ids = [group * 100 + i for i in range(common)] + [chain * 100 + i for i in range(common, 8)]
        self.admit(Holding(ids[: -(-tokens // (2 * BLOCK))], 2), tokens)

    @precondition(lambda self: self.preempted)
    @rule()
    def admit_again(self) -> None:
        self.admit(*self.preempted.pop())

    def admit(self, holding: Holding, tokens: int) -> None:
        hit = self.pool.find(holding, tokens)
        assert hit.tokens < tokens
        free = self.pool.free
        found = [block for span, used in zip(hit.spans, hit.used, strict=True) for block in span.ids[:used]]
        seen, anew = self.seen.intersection(holding.keys), holding.cached_anew
        if self.pool.admit(holding, hit, tokens):
            assert holding.cached_anew - anew <= len(seen) * holding.blocks_per_key, "only what was there can be missed"
            self.seen.update(holding.keys)
            assert holding.block_table()[: len(found)] == found
            self.held.append((holding, tokens))
        else:
            assert self.pool.free == free

    @precondition(lambda self: self.held)
    @rule(which=st.integers(0), more=st.integers(1, 12))
    def grow(self, which: int, more: int) -> None:
        holding, tokens = self.held[which % len(self.held)]
        if self.pool.blocks_missing(holding, tokens + more) <= self.pool.free:
            before = holding.block_table()
            self.pool.hold(holding, tokens + more)
            self.pool.cache_full_blocks(holding, tokens + more)
            self.held[which % len(self.held)] = (holding, tokens + more)
            assert holding.block_table()[: len(before)] == before

    @precondition(lambda self: self.held)
    @rule(which=st.integers(0))
    def leave(self, which: int) -> None:
        holding, _ = self.held.pop(which % len(self.held))
        self.pool.release(holding)

    @precondition(lambda self: self.held)
    @rule(which=st.integers(0))
    def preempt(self, which: int) -> None:
        holding, tokens = self.held.pop(which % len(self.held))
        self.pool.release(holding, resumable_tokens=tokens)
        self.preempted.append((holding, tokens))

    @rule()
    def forget(self) -> None:
        """The engine is started anew."""
        while self.held:
            self.preempt(0)
        self.pool.forget()
        self.seen = set()
        assert all(not self.pool.find(holding, tokens).tokens for holding, tokens in self.preempted)

    @invariant()
    def every_block_is_somewhere_once(self) -> None:
        spans = {id(span): span for span in self.pool._queue}
        assert sum(len(span.ids) for span in spans.values()) == self.pool.free
        tails: list[int] = []
        for holding, tokens in self.held:
            assert len(holding.block_table()) == holding.blocks == -(-tokens // BLOCK)
            tails += holding.tail
            for span in holding.spans:
                assert id(span) not in {id(s) for s in self.pool._queue}
                spans[id(span)] = span
        everything = tails + [block for span in spans.values() for block in span.ids]
        assert sorted(everything) == list(range(BLOCKS))

    @invariant()
    def holders_are_counted(self) -> None:
        count: dict[int, int] = {}
        for holding, _ in self.held:
            for span in holding.spans:
                count[id(span)] = count.get(id(span), 0) + 1
        for span in filter(None, self.pool._cached.values()):
            assert span.holders == count.get(id(span), 0)
        assert self.pool._evicted == list(self.pool._cached.values()).count(None)
        assert self.seen.issuperset(self.pool._cached)

    def teardown(self) -> None:
        for holding, _ in self.held:
            self.pool.release(holding)
        assert self.pool.free == BLOCKS
        assert all(not span.holders for span in self.pool._queue)


PoolMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestPool = PoolMachine.TestCase


def hit_tokens(pool: BlockPool, ids: list[int], tokens: int) -> int:
    return pool.find(Holding(ids, 1), tokens).tokens


def test_only_full_blocks_are_found_and_one_token_is_left() -> None:
    pool = BlockPool(10, 4)
    first = Holding([1, 2, 3], 1)
    assert pool.admit(first, pool.find(first, 10), 10)  # two full blocks and a half
    assert hit_tokens(pool, [1, 2, 3], 10) == 8
    assert hit_tokens(pool, [1, 2], 8) == 4  # all of it is cached, but its last token's logits are not
    assert hit_tokens(pool, [1, 9], 9) == 4
    assert hit_tokens(pool, [9, 2], 9) == 0


def test_least_recently_freed_goes_first_and_its_end_before_its_start() -> None:
    pool = BlockPool(4, 4)
    for key in (1, 2):
        holding = Holding([key * 10, key * 10 + 1], 1)
        assert pool.admit(holding, pool.find(holding, 8), 8)
        pool.release(holding)
    pool.take(1)
    assert hit_tokens(pool, [10, 11], 9) == 4
    assert hit_tokens(pool, [20, 21], 9) == 8
    pool.take(2)
    assert hit_tokens(pool, [10, 11], 9) == 0
    assert hit_tokens(pool, [20, 21], 9) == 4


def test_the_start_of_a_long_id_outlives_its_end() -> None:
    pool = BlockPool(8, 4)
    holding = Holding([7], 8)
    assert pool.admit(holding, pool.find(holding, 32), 32)
    pool.release(holding)
    pool.take(3)
    assert pool.find(Holding([7], 8), 40).tokens == 20


def test_what_a_pool_forgets_was_not_evicted() -> None:
    """Of three ids the last is evicted; after `forget` all three are new, whether they were evicted or not."""
    for forgets, missed in ((False, 1), (True, 0)):
        pool = BlockPool(4, 4)
        first = Holding([1, 2, 3], 1)
        assert pool.admit(first, pool.find(first, 12), 12)
        pool.release(first)
        other = Holding([8, 9], 1)
        assert pool.admit(other, pool.find(other, 8), 8)
        pool.release(other)
        if forgets:
            pool.forget()
            assert pool.free == pool.total
            assert not hit_tokens(pool, [1, 2, 3], 13)
        again = Holding([1, 2, 3], 1)
        assert pool.admit(again, pool.find(again, 12), 12)
        assert again.cached_anew == missed


def test_a_preempted_request_finds_its_own_tokens_and_nobody_else_does() -> None:
    pool = BlockPool(8, 4)
    holding = Holding()
    assert pool.admit(holding, pool.find(holding, 14), 14)
    table = holding.block_table()
    pool.release(holding, resumable_tokens=14)
    assert pool.free == 8
    assert pool.find(Holding(), 14).tokens == 0
    hit = pool.find(holding, 15)
    assert hit.tokens == 12
    assert pool.admit(holding, hit, 15)
    assert holding.block_table()[:3] == table[:3]
