"""Each router keeps its law, whatever it is told; and the fleet tells it the truth."""

from collections import Counter
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from engine_workloads import BURST, LinearStepTimes, configs, traces
from hypothesis import given, settings
from hypothesis import strategies as st
from told_routers import Told, make, prompt

from ground.errors import UserError
from sim.engine.config import EngineConfig
from sim.fleet.equal_replicas import equal_replicas
from sim.fleet.load import Load
from sim.fleet.routers import ROUTERS
from sim.fleet.routers.router import RouterSetting
from sim.fleet.routers.slo_tiers import divide
from sim.fleet.routing_settings import RoutingSettings, SessionAffinitySettings, SloTier, SloTiersSettings
from sim.study.scenario import make_scenario
from sim.study.simulate import simulate
from traces.streams import stream

LOADS = st.integers(1, 5).flatmap(
    lambda replicas: st.lists(
        st.lists(st.integers(0, 200), min_size=replicas, max_size=replicas), min_size=1, max_size=40
    )
)


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


@given(LOADS)
def test_least_tokens_never_picks_one_with_more(loads: list[list[int]]) -> None:
    router = ROUTERS["least_tokens"](RouterSetting(stream(0, "router"), 10_000))
    for tokens in loads:
        load = Load()
        load.requests, load.tokens = list(reversed(tokens)), list(tokens)
        assert tokens[router.choose(prompt(), load)] == min(tokens)


@pytest.mark.parametrize("replicas", [1, 2, 5])
def test_random_draws_all_equally_often_whatever_their_load(replicas: int) -> None:
    router, draws = make("random", replicas, seed=8), 10_000
    chosen = np.bincount([router.choose(prompt(), range(replicas)) for _ in range(draws)], minlength=replicas)
    assert np.all(np.abs(chosen - draws / replicas) <= 4 * (draws / replicas) ** 0.5)


# Sessions.

SESSIONS = [f"session {number}" for number in range(400)]


def homes(router: Told, replicas: list[int]) -> dict[str, int]:
    """The replica of each session while nobody has any load."""
    router.router.members(replicas)
    return {name: replicas[router.choose(prompt(session=name), [0] * len(replicas))] for name in SESSIONS}


@given(st.sets(st.integers(0, 50), min_size=2, max_size=8).map(sorted), st.data())
@settings(max_examples=20)
def test_a_replica_that_comes_or_goes_moves_only_its_own_sessions(replicas: list[int], data: st.DataObject) -> None:
    router = make("session_affinity", 1)
    before = homes(router, replicas)
    leaver = data.draw(st.sampled_from(replicas))
    after = homes(router, [replica for replica in replicas if replica != leaver])
    assert all(after[name] == home for name, home in before.items() if home != leaver)
    assert homes(router, replicas) == before  # it is back, with its number: so are they
    newer = homes(router, [*replicas, 60])
    assert all(newer[name] in (home, 60) for name, home in before.items())


def test_sessions_are_spread_evenly_and_alike_in_every_process() -> None:
    found = homes(make("session_affinity", 1), list(range(4)))
    counts = Counter(found.values())
    assert sum(counts.values()) == 400 and all(60 <= counts[replica] <= 140 for replica in range(4))
    assert [found[name] for name in SESSIONS[:6]] == [3, 1, 2, 3, 1, 1]


@given(LOADS, st.sampled_from([1.0, 1.25, 3.0]))
def test_no_replica_gets_more_than_its_share_of_the_load(loads: list[list[int]], factor: float) -> None:
    options = SessionAffinitySettings(balance_factor=factor)
    router = make("session_affinity", len(loads[0]), routing=RoutingSettings(session_affinity=options))
    for number, load in enumerate(loads):
        choice = router.choose(prompt(session=SESSIONS[number]), load)
        assert load[choice] + 1 <= ceil(factor * (sum(load) + 1) / len(load))


@given(LOADS)
def test_without_a_bound_a_session_stays_where_it_is_and_without_a_session_the_idlest_is_chosen(
    loads: list[list[int]],
) -> None:
    options = SessionAffinitySettings(balance_factor="unlimited")
    router = make("session_affinity", len(loads[0]), routing=RoutingSettings(session_affinity=options))
    assert len({router.choose(prompt(session="a"), load) for load in loads}) == 1
    assert all(load[router.choose(prompt(), load)] == min(load) for load in loads)


def test_a_bound_that_is_switched_off_stays_off_in_the_resolved_scenario() -> None:
    off = SessionAffinitySettings(balance_factor="unlimited").model_dump(mode="json", exclude_none=True)
    assert SessionAffinitySettings.model_validate(off).balance_factor == "unlimited"


# Tiers.

SHARES = st.lists(st.integers(1, 10), min_size=1, max_size=4).map(lambda parts: [part / sum(parts) for part in parts])


@given(st.integers(1, 40), SHARES)
def test_tiers_divide_the_replicas_by_their_shares(replicas: int, shares: list[float]) -> None:
    places = divide(replicas, shares)
    assert all(len(tier) >= 1 and tier[-1] < replicas for tier in places)
    if replicas >= len(shares):
        assert [place for tier in places for place in tier] == list(range(replicas))
        at_end = np.cumsum(shares) * replicas
        # Rounded, but for what makes room for the one replica that each tier has at least.
        assert all(
            abs(tier[-1] + 1 - end) <= 0.5 + 1e-9
            or tier[-1] + 1 in (number + 1, replicas - len(shares) + number + 1)
            or len(tier) == 1
            for number, (tier, end) in enumerate(zip(places, at_end, strict=True))
        )


TIERS = (SloTier(min_priority=2, share=0.25), SloTier(min_priority=0, share=0.25), SloTier(share=0.5))


@given(st.lists(st.integers(0, 9), min_size=8, max_size=8), st.integers(-3, 4), st.none() | st.integers(1, 9))
def test_a_tier_goes_to_its_own_replicas_and_borrows_downwards(
    load: list[int], priority: int, spill: int | None
) -> None:
    options = SloTiersSettings(tiers=TIERS, spill=spill)
    router = make("slo_tiers", 8, routing=RoutingSettings(slo_tiers=options))
    begin, end = (0, 2) if priority >= 2 else (2, 4) if priority >= 0 else (4, 8)
    if spill is not None and min(load[begin:end]) >= spill:
        end = 8
    choice = router.choose(prompt(priority=priority), load)
    assert begin <= choice < end and load[choice] == min(load[begin:end])


@pytest.mark.parametrize(
    ("tiers", "said"),
    [
        (({"min_priority": 1, "share": 1.0},), "the last tier has min_priority 1"),
        (({"share": 0.5}, {"share": 0.5}), "expected falling numbers"),
        (({"min_priority": 0, "share": 0.2}, {"min_priority": 1, "share": 0.4}, {"share": 0.4}), "expected falling"),
        (({"min_priority": 0, "share": 0.2}, {"share": 0.7}), "add up to 0.9"),
    ],
)
def test_tiers_that_make_no_sense_are_refused(tiers: tuple[dict[str, float], ...], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        SloTiersSettings.model_validate({"tiers": tiers})


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


@pytest.mark.parametrize(
    ("fleet", "said"),
    [
        ({"router": "fastest"}, r"fleet: unknown router 'fastest', expected one of round_robin, random, "),
        ({"routing": {"kv_cost": {"temprature": 1}}}, r"unknown key 'fleet\.routing\.kv_cost\.temprature'"),
        ({"routing": {"least": {}}}, r"unknown key 'fleet\.routing\.least'"),
        ({"routing": {"load_delay": -1}}, r"fleet\.routing\.load_delay: .* found -1"),
        ({"routing": {"scrape_interval": 1e-9}}, r"fleet\.routing: scrape_interval is 1e-09; expected 0 or at least"),
        (
            {"routing": {"scorers": {"weights": {"luck": 1}}}},
            r"fleet\.routing\.scorers: unknown scorer 'luck', expected",
        ),
        ({"routing": {"session_affinity": {"balance_factor": 0.5}}}, r"balance_factor: .* found 0\.5"),
    ],
)
def test_a_wrong_setting_is_told_in_a_line(fleet: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        make_scenario(BURST | {"fleet": fleet}, {}, Path(), "scenario.yaml")


@pytest.mark.parametrize("router", sorted(ROUTERS))
def test_a_scenario_runs_with_every_router_and_says_how_it_was_set(router: str) -> None:
    """Also with late loads and scraped gauges; the options of the router in use are spelt out, and no others."""
    fleet = {"replicas": 3, "router": router, "routing": {"load_delay": 0.3, "scrape_interval": 0.1}}
    run = simulate(make_scenario(BURST | {"fleet": fleet}, {}, Path(), "scenario.yaml"))
    assert set(run.requests["status"]) == {"finished"}
    options = set(run.scenario["fleet"]["routing"]) - {"load_delay", "scrape_interval"}
    assert options == ({router} & set(RoutingSettings.model_fields))
    again = make_scenario(run.scenario, {}, Path(), "scenario.yaml")
    assert again.resolved() == run.scenario
    assert simulate(again).requests.equals(run.requests)
