"""The routers that know what they sent keep prompts with a common start together, and their rules are as published."""

from collections.abc import Sequence
from math import ceil

import numpy as np
import polars as pl
import pytest
from engine_workloads import LinearStepTimes
from hypothesis import given, settings
from hypothesis import strategies as st
from prefix_matches import longest
from told_routers import Told, make, prompt

from sim.engine.config import EngineConfig
from sim.engine.gauge import Gauge
from sim.engine.request import Request
from sim.fleet.equal_replicas import equal_replicas
from sim.fleet.replica_scores import SCORERS
from sim.fleet.routers.kv_cost import KvCost
from sim.fleet.routers.prefix_holders import PrefixHolders
from sim.fleet.routers.router import RouterSetting
from sim.fleet.routers.sent_prefixes import SentPrefixes
from sim.fleet.routing_settings import KvCostSettings, PrefixAwareSettings, RoutingSettings, ScorersSettings
from traces.streams import stream

DEFAULTS = PrefixAwareSettings()


def test_a_repeated_prefix_goes_where_it_was_sent() -> None:
    router = make("prefix_aware", 3)
    assert router.choose(prompt(1, 2, 3), [5, 0, 5]) == 1
    assert router.choose(prompt(1, 2, 3), [0, 5, 0]) == 1
    assert router.choose(prompt(1, 2, 3, 4, 5), [0, 60, 0]) == 1
    assert router.choose(prompt(9, 8), [0, 5, 0]) == 0  # another prompt: the idlest


def test_of_equal_matches_the_less_loaded_is_chosen() -> None:
    router = make("prefix_aware", 2)
    router.choose(prompt(1, 2), [0, 1])
    router.choose(prompt(1, 2), [DEFAULTS.balance_absolute + 1, 0])  # out of balance, so the second replica has it too
    assert router.choose(prompt(1, 2), [4, 3]) == 1
    assert router.choose(prompt(1, 2), [3, 4]) == 0


def test_a_match_must_cover_more_than_the_threshold() -> None:
    assert DEFAULTS.match_threshold == 0.3
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
    unbalanced = high - low > DEFAULTS.balance_absolute and high > DEFAULTS.balance_relative * low
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


@settings(max_examples=60)
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


# Who has what.


class NaiveSent:
    """The ids of each replica in a list, least recently sent first."""

    def __init__(self, blocks: int) -> None:
        self.blocks = blocks
        self.sent: dict[int, list[int]] = {}

    def members(self, replicas: Sequence[int]) -> None:
        self.sent = {replica: self.sent.get(replica, []) for replica in replicas}

    def remember(self, place: int, ids: Sequence[int]) -> None:
        replica = list(self.sent)[place]
        kept = [known for known in self.sent[replica] if known not in ids]
        self.sent[replica] = [*kept, *reversed(ids)][-self.blocks :]

    def matches(self, ids: Sequence[int]) -> list[int]:
        return [next((i for i, x in enumerate(ids) if x not in known), len(ids)) for known in self.sent.values()]


CHAINS = st.lists(st.integers(0, 2), max_size=6).map(
    lambda path: [sum(3**at * (branch + 1) for at, branch in enumerate(path[: end + 1])) for end in range(len(path))]
)


@given(
    st.lists(
        st.tuples(st.just("send"), CHAINS, st.integers(0, 4)) | st.tuples(st.just("come")) | st.tuples(st.just("go")),
        max_size=40,
    ),
    st.integers(1, 12),
    st.randoms(use_true_random=False),
)
def test_what_was_sent_is_known_as_had_each_replica_a_list(story: list[tuple], blocks: int, random: object) -> None:
    """Also while replicas come and go, in any place."""
    sent, naive = SentPrefixes(blocks * 16), NaiveSent(blocks)
    replicas, newest = [0, 1], 1
    for one in (sent, naive):
        one.members(replicas)
    for step in story:
        if step[0] == "send":
            ids = step[1]
            matches = naive.matches(ids)
            assert sent.matches(ids) == matches
            best = [i for i, match in enumerate(matches) if match == max(matches)]
            assert longest(sent, ids, len(replicas)) == (max(matches), best)
            place = step[2] % len(replicas)
            sent.remember(place, prompt(*ids))
            naive.remember(place, ids)
            continue
        if step[0] == "come":
            newest += 1
            replicas = [*replicas, newest]
        elif len(replicas) > 1:
            gone = random.choice(replicas)  # type: ignore[attr-defined]
            replicas = [replica for replica in replicas if replica != gone]
        for one in (sent, naive):
            one.members(replicas)


def test_a_bit_given_back_remembers_nothing() -> None:
    holders = PrefixHolders()
    holders.members([0, 1])
    holders.add(0, 7)
    holders.add(1, 7)
    holders.remove(0, 7)
    holders.members([1, 2])
    assert holders.matches([7]) == [1, 0] and longest(holders, [7, 8], 2) == (1, [0])
    holders.add(2, 8)
    assert holders.matches([7, 8]) == [1, 0] and holders.matches([8]) == [0, 1]


def test_the_thresholds_are_settings() -> None:
    routing = RoutingSettings(prefix_aware=PrefixAwareSettings(match_threshold=0.5, balance_absolute=3))
    router = make("prefix_aware", 2, routing=routing)
    router.choose(prompt(1, 2), [0, 1])
    assert router.choose(prompt(1, 2, 3, 4), [1, 0]) == 1  # half is not more than half
    router.choose(prompt(5, 6), [0, 1])
    assert router.choose(prompt(5, 6), [3, 0]) == 0 and router.choose(prompt(5, 6), [4, 0]) == 1


# Dynamo's cost.

KV_COSTS = st.builds(
    KvCostSettings,
    overlap_credit=st.sampled_from([0.0, 0.5, 1.0]),
    overlap_credit_decay=st.sampled_from([0.0, 0.3, 2.0]),
    prefill_load_scale=st.sampled_from([0.0, 0.5, 1.0, 3.0]),
    active_request_weight=st.sampled_from([0.0, 1.5]),
)


def naive_costs(options: KvCostSettings, request: Request, there: list[list[tuple]], matches: list[int]) -> list[float]:
    """`there`: the requests of each replica, each with its tokens to prefill."""
    waiting = [sum(tokens for one, tokens in own if one.first_token is None) for own in there]
    costs = []
    for own, tokens, match in zip(there, waiting, matches, strict=True):
        excess = (tokens - min(waiting)) / 16 / ceil(request.prompt_tokens / 16)
        overlap = options.overlap_credit / (1 + options.overlap_credit_decay * excess) * match
        active = {known for one in (*(one for one, _ in own), request) for known in one.prefix_ids}
        beyond = sum(
            max(0, one.prompt_tokens - 16 * len(one.prefix_ids)) for one in (*(one for one, _ in own), request)
        )
        costs.append(
            options.prefill_load_scale * max(0.0, (tokens + request.prompt_tokens) / 16 - overlap)
            + len(active)
            + beyond / 16
            + options.active_request_weight * len(own)
        )
    return costs


@given(KV_COSTS, st.lists(st.tuples(CHAINS, st.integers(0, 3), st.integers(0, 40)), max_size=25))
def test_kv_cost_is_the_formula_told_naively(options: KvCostSettings, story: list[tuple]) -> None:
    """Of each request: its ids, what happens before it (nothing, a first token, an end), and to whom."""
    router = make("kv_cost", 3, routing=RoutingSettings(kv_cost=options))
    known = NaiveSent(10_000 // 16)
    known.members(range(3))
    there: list[list[tuple[Request, int]]] = [[], [], []]
    for number, (ids, what, whom) in enumerate(story):
        everybody = [(place, at) for place, own in enumerate(there) for at in range(len(own))]
        if what and everybody:
            place, at = everybody[whom % len(everybody)]
            if what == 1:
                there[place][at][0].first_token = 0.0
            else:
                request, _ = there[place].pop(at)
                router.router.ended(request, place)
        request = prompt(*ids, request_id=number)
        request.prompt_tokens += 5  # beyond its ids
        matches = known.matches(ids)
        costs = naive_costs(options, request, there, matches)
        choice = router.choose(request, [len(own) for own in there])
        assert costs[choice] == pytest.approx(min(costs))
        router.router.sent(request, choice)
        there[choice].append((request, request.prompt_tokens - 16 * matches[choice]))
        known.remember(choice, ids)


def test_a_temperature_draws_by_cost() -> None:
    """Costs of 0, 1 and 2 requests, a spread of 2: so the weights at temperature 1/2 are exp(-0), exp(-1), exp(-2)."""
    options = KvCostSettings(active_request_weight=7.0, temperature=0.5)
    router, draws = make("kv_cost", 3, routing=RoutingSettings(kv_cost=options), seed=3), 6_000
    chosen = np.bincount([router.choose(prompt(), [0, 1, 2]) for _ in range(draws)], minlength=3)
    weights = np.exp(-np.arange(3.0))
    shares = weights / weights.sum()
    assert np.all(np.abs(chosen - draws * shares) <= 4 * np.sqrt(draws * shares * (1 - shares)))


def test_a_first_token_that_is_not_heard_of_is_still_to_come() -> None:
    """Ten blocks on one replica, to prefill and to decode until that is over and known; fifteen on the other, that
    only decode."""
    clock = [0.0]
    setting = RouterSetting(stream(0, "router"), 10_000, 16, RoutingSettings(load_delay=2.0), lambda: clock[0])
    router = KvCost(setting)
    router.members([0, 1])
    ten, fifteen = prompt(*range(10)), prompt(*range(100, 115))
    first = router.choose(ten, Told.load_of([0, 0]))
    router.sent(ten, first)
    assert router.choose(fifteen, Told.load_of([0, 0])) == 1 - first
    router.sent(fifteen, 1 - first)
    fifteen.first_token, ten.first_token = 0.0, 1.0
    clock[0] = 2.9
    assert router.choose(prompt(50), Told.load_of([0, 0])) == 1 - first
    clock[0] = 3.0
    assert router.choose(prompt(60), Told.load_of([0, 0])) == first


# Weighted scores.


@st.composite
def scored(draw: st.DrawFn) -> tuple[dict[str, float], list[tuple]]:
    names = draw(st.lists(st.sampled_from(sorted(SCORERS)), min_size=1, max_size=6, unique=True))
    weights = {name: draw(st.sampled_from([0.5, 1.0, 2.0, 3.0])) for name in names}
    gauges = st.builds(Gauge, st.sampled_from([0, 0, 1, 7, 200]), st.just(0), st.sampled_from([0.0, 0.25, 0.9, 1.0]))
    story = st.tuples(
        CHAINS,
        st.lists(gauges, min_size=3, max_size=3),
        st.lists(st.integers(0, 9), min_size=3, max_size=3),
        st.sampled_from([None, "a", "b"]),
    )
    return weights, draw(st.lists(story, min_size=1, max_size=25))


@given(scored())
def test_scores_are_added_up_as_told_naively(drawn: tuple[dict[str, float], list[tuple]]) -> None:
    weights, story = drawn
    router = make("scorers", 3, routing=RoutingSettings(scorers=ScorersSettings(weights=weights)))
    known = NaiveSent(10_000 // 16)
    known.members(range(3))
    last: dict[str | None, int] = {}
    for ids, gauges, requests, session in story:
        waiting = [gauge.waiting for gauge in gauges]
        spread = max(waiting) - min(waiting)
        scores = {
            "prefix": [match / len(ids) if ids else 0 for match in known.matches(ids)],
            "queue": [(max(waiting) - one) / spread if spread else 1 for one in waiting],
            "kv": [1 - gauge.kv_use for gauge in gauges],
            "load_aware": [0.5 * (1 - min(one / 128, 1)) for one in waiting],
            "active_requests": [(max(requests) - one) / max(requests) if one else 1 for one in requests],
            "session": [int(last.get(session, -1) == place) for place in range(3)],
        }
        totals = [sum(weight * scores[name][place] for name, weight in weights.items()) for place in range(3)]
        choice = router.choose(prompt(*ids, session=session), requests, gauges)
        assert totals[choice] == pytest.approx(max(totals))
        known.remember(choice, ids)
        if session is not None:
            last[session] = choice


def test_equal_scores_are_drawn_evenly() -> None:
    router, draws = make("scorers", 4, seed=9), 8_000
    chosen = np.bincount([router.choose(prompt(), [0] * 4) for _ in range(draws)], minlength=4)
    assert np.all(np.abs(chosen - draws / 4) <= 4 * (draws * 3 / 16) ** 0.5)
