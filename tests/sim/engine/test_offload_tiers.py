"""Tiers of offloaded blocks: who leaves, against the papers' words; places that never collide; pins that hold."""

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from sim.engine.block_pool import BlockPool, Holding
from sim.engine.offload.arc import Arc
from sim.engine.offload.evicting_pool import EvictingPool
from sim.engine.offload.lru import Lru
from sim.engine.offload.names import block_names
from sim.engine.offload.tier import Tier

requests = st.lists(st.integers(0, 14), max_size=200)


class PaperArc:
    """Figure 4 of Megiddo and Modha, line by line: lists with the most recently used first."""

    def __init__(self, c: int) -> None:
        self.c, self.p = c, 0.0
        self.t1: list[int] = []
        self.t2: list[int] = []
        self.b1: list[int] = []
        self.b2: list[int] = []

    def request(self, x: int) -> bool:
        t1, t2, b1, b2, c = self.t1, self.t2, self.b1, self.b2, self.c
        if x in t1 or x in t2:  # case I
            (t1 if x in t1 else t2).remove(x)
            t2.insert(0, x)
            return True
        if x in b1:  # case II
            self.p = min(self.p + (1 if len(b1) >= len(b2) else len(b2) / len(b1)), c)
            self.replace(x)
            b1.remove(x)
            t2.insert(0, x)
            return False
        if x in b2:  # case III
            self.p = max(self.p - (1 if len(b2) >= len(b1) else len(b1) / len(b2)), 0)
            self.replace(x)
            b2.remove(x)
            t2.insert(0, x)
            return False
        if len(t1) + len(b1) == c:  # case IV (A)
            if len(t1) < c:
                b1.pop()
                self.replace(x)
            else:
                t1.pop()
        else:  # case IV (B)
            total = len(t1) + len(t2) + len(b1) + len(b2)
            if total >= c:
                if total == 2 * c:
                    b2.pop()
                self.replace(x)
        t1.insert(0, x)
        return False

    def replace(self, x: int) -> None:
        if self.t1 and ((x in self.b2 and len(self.t1) == self.p) or len(self.t1) > self.p):
            self.b1.insert(0, self.t1.pop())
        else:
            self.b2.insert(0, self.t2.pop())


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 6), requests)
def test_arc_is_the_papers(capacity: int, asked: Sequence[int]) -> None:
    paper, arc = PaperArc(capacity), Arc(capacity)
    for name in asked:
        there = name in arc
        assert paper.request(name) == there
        before = set(arc)
        if there:
            arc.touch(name)
            leaving = None
        else:
            leaving = arc.insert(name, ())
        assert list(arc) == [*reversed(paper.t1), *reversed(paper.t2)]
        assert arc.target == paper.p
        assert before | {name} == set(arc) | ({leaving} - {None})


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 6), requests)
def test_lru_keeps_the_names_used_last(capacity: int, asked: Sequence[int]) -> None:
    lru = Lru(capacity)
    for number, name in enumerate(asked):
        if name in lru:
            lru.touch(name)
        else:
            lru.insert(name, ())
        used_last = list(dict.fromkeys(reversed(asked[: number + 1])))[:capacity]
        assert list(lru) == used_last[::-1]


def test_arc_keeps_what_is_used_again_where_a_scan_passes() -> None:
    """What LRU loses: a few names that come again and again between many that come once."""
    hits = {}
    for kind in (Arc, Lru):
        cache, hits[kind] = kind(8), 0
        for turn in range(200):
            for name in (0, 1, 2, 0, 1, 2, *range(1000 + 10 * turn, 1010 + 10 * turn)):
                if name in cache:
                    hits[kind] += 1
                    cache.touch(name)
                else:
                    cache.insert(name, ())
    assert hits[Lru] == 3 * 200, "each turn's scan drives them out"
    assert hits[Arc] == 6 * 200 - 3


class Tiers(RuleBasedStateMachine):
    """A tier under writes and reads that overlap."""

    eviction = "lru"

    def __init__(self) -> None:
        super().__init__()
        self.tier = Tier(6, self.eviction, first=100)
        self.writing: list[list[int]] = []
        self.reading: list[list[int]] = []
        self.content: dict[int, int] = {}  # place → name, as the copies leave it

    @rule(names=st.lists(st.integers(0, 20), unique=True, max_size=8))
    def write(self, names: list[int]) -> None:
        new = [name for name in names if name not in self.tier]
        held = {name for copy in (*self.writing, *self.reading) for name in copy}
        places = self.tier.make_place(new)
        assert len(places) == min(len(new), 6 - len(held))
        taken = new[: len(places)]
        for name, place in zip(taken, places, strict=True):
            self.content[place] = name
        if taken:
            self.writing.append(taken)
        assert all(name in self.tier for name in held), "who is read or written does not leave"

    @precondition(lambda self: self.writing)
    @rule()
    def written(self) -> None:
        self.tier.written(self.writing.pop(0))

    @rule(names=st.lists(st.integers(0, 20), unique=True, max_size=4))
    def read(self, names: list[int]) -> None:
        found = [name for name in names if self.tier.can_read(name)]
        assert not {name for copy in self.writing for name in copy} & set(found)
        self.tier.touch(found)
        self.tier.pin(found)
        self.reading.append(found)

    @precondition(lambda self: self.reading)
    @rule()
    def has_read(self) -> None:
        for name in self.reading[0]:
            assert self.content[self.tier.place_of(name)] == name
        self.tier.unpin(self.reading.pop(0))

    @invariant()
    def every_block_has_a_place_of_its_own(self) -> None:
        places = [self.tier.place_of(name) for name in self.tier.names]
        assert len(set(places)) == len(places) == self.tier.used <= 6
        assert all(100 <= place < 106 for place in places)


class ArcTiers(Tiers):
    eviction = "arc"


TestTiers, TestArcTiers = Tiers.TestCase, ArcTiers.TestCase
TestTiers.settings = TestArcTiers.settings = settings(max_examples=30, stateful_step_count=25, deadline=None)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from([1, 2, 4]), st.lists(st.tuples(st.integers(0, 3), st.integers(1, 24)), min_size=1, max_size=12))
def test_the_pool_tells_every_block_that_it_loses(per_key: int, prompts: list[tuple[int, int]]) -> None:
    """What the prefix cache had and has no more was said to be evicted, where it lay; else the pool is as ever."""
    pool, plain = EvictingPool(30, 4), BlockPool(30, 4)
    where: dict[int, int] = {}  # name → block, of what is cached
    for group, blocks in prompts:
        keys = [100 * group + i for i in range(-(-blocks // per_key))]
        for one in (pool, plain):
            holding = Holding(keys, per_key)
            one.admit(holding, one.find(holding, 4 * blocks), 4 * blocks)
            table = holding.block_table()
            one.release(holding)
            if one is pool:
                for name, block in pool.evicted:
                    assert where.pop(name) == block
                pool.evicted.clear()
                first_names = block_names(holding, 0, blocks)
                where |= {name: block for name, block in zip(first_names, table, strict=True) if name not in where}
        assert pool.free == plain.free
        known = Holding(keys, per_key)
        assert pool.find(known, 10_000).tokens == plain.find(known, 10_000).tokens
        assert pool.find(known, 10_000).tokens // 4 == sum(name in where for name in block_names(known, 0, 10_000))


def test_blocks_are_free_until_the_first_that_is_not_saved() -> None:
    pool = EvictingPool(10, 4)
    holding = Holding([7, 8, 9])
    pool.admit(holding, pool.find(holding, 12), 12)
    pool.release(holding)
    assert pool.free_before_loss(()) == 7
    assert pool.free_before_loss((9,)) == 8
    assert pool.free_before_loss((7, 8, 9)) == 10


def test_every_pinned_tier_takes_nobody() -> None:
    tier = Tier(2, "arc")
    assert tier.make_place([1, 2, 3]) == [1, 0]
    assert tier.make_place([4]) == []
    tier.written([1])
    assert tier.make_place([4, 5]) == [1]


@pytest.mark.parametrize("eviction", ["lru", "arc"])
def test_the_end_of_a_prefix_leaves_before_its_start(eviction: str) -> None:
    tier = Tier(4, eviction)
    tier.make_place([1, 2, 3])
    tier.written([1, 2, 3])
    tier.make_place([9, 10])
    assert 3 not in tier and 1 in tier and 2 in tier
