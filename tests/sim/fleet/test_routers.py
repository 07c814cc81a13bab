"""Each router keeps its law, whatever it is told; and the fleet tells it the truth."""

from collections import Counter

import numpy as np
import polars as pl
import pytest
from engine_workloads import LinearStepTimes, configs, traces
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.engine.config import EngineConfig
from sim.engine.request import Request
from sim.fleet.equal_replicas import equal_replicas
from sim.fleet.load import Load
from sim.fleet.routers import ROUTERS
from sim.fleet.routers.prefix_aware import BALANCE_ABSOLUTE, BALANCE_RELATIVE, MATCH_THRESHOLD
from sim.fleet.routers.router import Router, RouterSetting
from traces.streams import stream

LOADS = st.integers(1, 5).flatmap(
    lambda replicas: st.lists(
        st.lists(st.integers(0, 200), min_size=replicas, max_size=replicas), min_size=1, max_size=40
    )
)


class Told:
    """A router that is told how many requests each replica has."""

    def __init__(self, router: Router) -> None:
        self.router = router

    def choose(self, request: Request, requests: list[int]) -> int:
        load = Load()
        load.requests, load.tokens = list(requests), [100 * count for count in requests]
        choice = self.router.choose(request, load)
        assert load.requests == requests
        return choice


def make(name: str, replicas: int, *, kv_tokens: int = 10_000, seed: int = 0) -> Told:
    router = ROUTERS[name](RouterSetting(stream(seed, "router"), kv_tokens))
    router.members(range(replicas))
    return Told(router)


def prompt(*prefix_ids: int, block_tokens: int = 16) -> Request:
    return Request(0, 0.0, max(1, len(prefix_ids) * block_tokens), 1, prefix_ids, block_tokens)


@given(st.sampled_from(sorted(ROUTERS)), LOADS)
def test_every_choice_is_a_replica_and_the_loads_are_left_alone(name: str, loads: list[list[int]]) -> None:
    router = make(name, len(loads[0]))
    for load in loads:
        before = list(load)
        assert router.choose(prompt(1, 2), load) in range(len(load))
        assert load == before


@given(LOADS)
def test_round_robin_takes_turns(loads: list[list[int]]) -> None:
    router, replicas = make("round_robin", len(loads[0])), len(loads[0])
    assert [router.choose(prompt(), load) for load in loads] == [i % replicas for i in range(len(loads))]


@given(LOADS)
def test_least_outstanding_never_picks_a_busier_one(loads: list[list[int]]) -> None:
    router = make("least_outstanding", len(loads[0]))
    for load in loads:
        assert load[router.choose(prompt(), load)] == min(load)


@given(LOADS, st.integers(0, 2**32))
def test_power_of_two_is_its_seed_and_never_picks_the_only_busiest(loads: list[list[int]], seed: int) -> None:
    replicas = len(loads[0])
    routers = [make("power_of_two", replicas, seed=seed) for _ in range(2)]
    for load in loads:
        choice = routers[0].choose(prompt(), load)
        assert choice == routers[1].choose(prompt(), load)
        # Two different replicas were looked at, so somebody is at least as busy.
        assert replicas == 1 or load[choice] <= max(other for i, other in enumerate(load) if i != choice)


@pytest.mark.parametrize("replicas", [2, 3, 8])
def test_power_of_two_looks_at_every_pair_equally_often(replicas: int) -> None:
    """With the loads in strict order, the replica of rank r is chosen when the other is one of those above it."""
    router, draws = make("power_of_two", replicas, seed=5), 20_000
    load = list(range(replicas))
    chosen = Counter(router.choose(prompt(), load) for _ in range(draws))
    pairs = replicas * (replicas - 1) / 2
    for rank in range(replicas):
        share = (replicas - 1 - rank) / pairs
        spread = (draws * share * (1 - share)) ** 0.5
        assert abs(chosen[rank] - draws * share) <= 4 * spread


@pytest.mark.parametrize("replicas", [2, 5])
def test_power_of_two_splits_equals_evenly(replicas: int) -> None:
    router, draws = make("power_of_two", replicas, seed=6), 20_000
    chosen = Counter(router.choose(prompt(), [7] * replicas) for _ in range(draws))
    spread = (draws / replicas) ** 0.5
    assert all(abs(chosen[i] - draws / replicas) <= 4 * spread for i in range(replicas))


def test_seeds_differ() -> None:
    assert len({make("power_of_two", 4, seed=seed).choose(prompt(), [0] * 4) for seed in range(20)}) > 1


# Prefix-aware.


def test_a_repeated_prefix_goes_where_it_was_sent() -> None:
    router = make("prefix_aware", 3)
    assert router.choose(prompt(1, 2, 3), [5, 0, 5]) == 1
    assert router.choose(prompt(1, 2, 3), [0, 5, 0]) == 1
    assert router.choose(prompt(1, 2, 3, 4, 5), [0, 60, 0]) == 1
    assert router.choose(prompt(9, 8), [0, 5, 0]) == 0  # another prompt: the idlest


def test_of_equal_matches_the_less_loaded_is_chosen() -> None:
    router = make("prefix_aware", 2)
    router.choose(prompt(1, 2), [0, 1])
    router.choose(prompt(1, 2), [BALANCE_ABSOLUTE + 1, 0])  # out of balance, so the second replica has it too
    assert router.choose(prompt(1, 2), [4, 3]) == 1
    assert router.choose(prompt(1, 2), [3, 4]) == 0


def test_a_match_must_cover_more_than_the_threshold() -> None:
    assert MATCH_THRESHOLD == 0.3
    for matching, expected in ((3, 1), (4, 0)):
        router = make("prefix_aware", 2)
        router.choose(prompt(*range(matching)), [0, 1])
        own = range(100, 100 + 10 - matching)
        assert router.choose(prompt(*range(matching), *own), [1, 0]) == expected


@given(st.integers(0, 200), st.integers(0, 200))
def test_out_of_balance_the_idlest_is_chosen(held: int, other: int) -> None:
    """The prefix is on replica 0; it is given up just where both thresholds are exceeded."""
    router = make("prefix_aware", 2)
    router.choose(prompt(1), [0, 1])
    low, high = sorted((held, other))
    unbalanced = high - low > BALANCE_ABSOLUTE and high > BALANCE_RELATIVE * low
    assert router.choose(prompt(1), [held, other]) == (int(other < held) if unbalanced else 0)


def test_what_no_longer_fits_the_pool_is_forgotten() -> None:
    router = make("prefix_aware", 2, kv_tokens=4 * 16)
    router.choose(prompt(1, 2, 3, 4), [0, 1])
    router.choose(prompt(5, 6), [0, 1])  # on the same replica: 3 and 4, the ends, make room
    assert router.choose(prompt(3, 4), [1, 0]) == 1
    assert router.choose(prompt(1, 2), [0, 1]) == 0
    router = make("prefix_aware", 2, kv_tokens=4 * 16)
    router.choose(prompt(1, 2, 3, 4), [0, 1])
    router.choose(prompt(5, 6, 7, 8), [0, 1])
    assert router.choose(prompt(1, 2, 3, 4), [1, 0]) == 1


@st.composite
def prompts(draw: st.DrawFn) -> list[tuple[list[int], list[int]]]:
    """(prefix ids, loads of three replicas): chains over a small tree, so that prefixes are shared."""
    out = []
    for _ in range(draw(st.integers(1, 40))):
        path = draw(st.lists(st.integers(0, 2), max_size=6))
        ids, node = [], 0
        for branch in path:
            node = 3 * node + branch + 1  # the id names the whole chain up to here
            ids.append(node)
        out.append((ids, draw(st.lists(st.sampled_from([0, 1, 2, 50, 70, 200]), min_size=3, max_size=3))))
    return out


@given(prompts(), st.integers(1, 20))
def test_prefix_aware_is_its_rule_told_naively(sequence: list[tuple[list[int], list[int]]], blocks: int) -> None:
    router = make("prefix_aware", 3, kv_tokens=blocks * 16)
    sent: list[list[int]] = [[], [], []]  # what each replica is thought to hold, least recently used first
    for ids, load in sequence:
        low, high = min(load), max(load)
        matches = [next((i for i, x in enumerate(ids) if x not in known), len(ids)) for known in sent]
        best = [i for i in range(3) if matches[i] == max(matches)]
        if (high - low > 64 and high > 1.5 * low) or max(matches) <= 0.3 * len(ids):
            expected = load.index(low)
        else:
            expected = min(best, key=lambda i: load[i])
        assert router.choose(prompt(*ids), load) == expected
        kept = [known for known in sent[expected] if known not in ids]
        sent[expected] = [*kept, *reversed(ids)][-blocks:]


# In a fleet.


@settings(max_examples=60, deadline=None)
@given(configs(block_size=4), traces(), st.integers(1, 4))
def test_a_fleet_deals_round_robin_evenly(config: EngineConfig, trace: pl.DataFrame, replicas: int) -> None:
    result = equal_replicas(trace, config, LinearStepTimes(), replicas=replicas).run()
    counts = np.bincount(result.requests["replica"], minlength=replicas)
    assert counts.max() - counts.min() <= 1


@settings(max_examples=60, deadline=None)
@given(configs(block_size=4), traces(), st.integers(1, 4))
def test_a_fleet_counts_who_is_outstanding(config: EngineConfig, trace: pl.DataFrame, replicas: int) -> None:
    """Recounted from the finished table: each request went to the first of those replicas that had the fewest."""
    result = equal_replicas(trace, config, LinearStepTimes(), replicas=replicas, router="least_outstanding").run()
    arrival, finish, replica = (result.requests[name].to_numpy() for name in ("arrival", "finish", "replica"))
    for index in range(len(trace)):
        # At one instant arrivals come before the ends of steps.
        outstanding = np.bincount(replica[:index][finish[:index] >= arrival[index]], minlength=replicas)
        assert replica[index] == int(outstanding.argmin())


@settings(max_examples=20, deadline=None)
@given(configs(block_size=4), traces(), st.sampled_from(sorted(ROUTERS)))
def test_one_replica_needs_no_choice(config: EngineConfig, trace: pl.DataFrame, router: str) -> None:
    alone, other = (
        equal_replicas(trace, config, LinearStepTimes(), router=name, seed=1).run() for name in ("round_robin", router)
    )
    assert alone.requests.equals(other.requests) and alone.steps.equals(other.steps)


def test_prefix_aware_keeps_conversations_together_where_round_robin_scatters_them() -> None:
    ids = [[10 * group + i for i in range(8)] for group in range(7)]
    count = 140
    trace = pl.DataFrame(
        {
            "request_id": range(count),
            "arrival": [0.1 * i for i in range(count)],
            "prompt_tokens": [8 * 16 + 1] * count,
            "output_tokens": [4] * count,
            "prefix_ids": [ids[i * i % 7] for i in range(count)],
            "prefix_block_tokens": [16] * count,
        }
    )
    cached = {
        router: equal_replicas(trace, EngineConfig(kv_blocks=100), LinearStepTimes(), replicas=4, router=router)
        .run()
        .requests["cached_tokens"]
        .sum()
        for router in ("prefix_aware", "round_robin")
    }
    groups = len({i * i % 7 for i in range(count)})
    # Computed once in the whole fleet, found ever after.
    assert cached["prefix_aware"] == (count - groups) * 8 * 16
    assert cached["round_robin"] < cached["prefix_aware"]
