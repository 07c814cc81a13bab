"""A router that hears late decides by what was true then, exactly; what it asks the engines is as it was scraped."""

import numpy as np
import polars as pl
import pytest
from engine_workloads import LinearStepTimes, configs, traces
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.engine.clock import Clock
from sim.engine.config import EngineConfig
from sim.engine.gauge import IDLE, Gauge
from sim.fleet.admission_settings import KvUseSettings
from sim.fleet.equal_replicas import equal_replicas
from sim.fleet.gauges import Gauges
from sim.fleet.late_news import LateNews
from sim.fleet.routing_settings import RoutingSettings, ScorersSettings
from traces.synth import SynthSpec, generate

GAPS = st.sampled_from([0.0, 0.0, 0.1, 0.25, 0.5, 1.0, 3.0])


@given(st.lists(st.tuples(GAPS, st.booleans()), max_size=60), st.sampled_from([0.0, 0.1, 0.5, 2.0]))
def test_news_arrive_in_order_and_as_late_as_told_naively(story: list[tuple[float, bool]], delay: float) -> None:
    """Each step of the story: a while passes, then something is told or all that has arrived is heard."""
    clock, heard = Clock(), []
    news, told = LateNews(clock, delay), []
    for number, (gap, tells) in enumerate(story):
        clock.at(clock.now + gap, 1)
        clock.run_out()
        if tells:
            news.late(lambda *what: heard.append(what))(number, "news")
            told.append((clock.now, (number, "news")))
        else:
            news.hear()
            assert heard == [what for time, what in told if time + delay <= clock.now]


@settings(max_examples=60, deadline=None)
@given(configs(block_size=4), traces(), st.integers(1, 4), st.sampled_from([0.003, 0.05, 0.3, 100.0]), st.booleans())
def test_a_fleet_counts_who_was_outstanding_a_while_ago(
    config: EngineConfig, trace: pl.DataFrame, replicas: int, delay: float, of_tokens: bool
) -> None:
    """Recounted from the finished table, by what had been told so long before each arrival."""
    router, routing = "least_tokens" if of_tokens else "least_outstanding", RoutingSettings(load_delay=delay)
    result = equal_replicas(trace, config, LinearStepTimes(), replicas=replicas, router=router, routing=routing).run()
    arrival, finish, replica = (result.requests[name].to_numpy() for name in ("arrival", "finish", "replica"))
    size = (trace["prompt_tokens"] + trace["output_tokens"]).to_numpy() if of_tokens else np.ones(len(trace))
    for index in range(len(trace)):
        sent, ended = (times[:index] + delay <= arrival[index] for times in (arrival, finish))
        there = sent & ~ended
        outstanding = np.bincount(replica[:index][there], weights=size[:index][there], minlength=replicas)
        assert replica[index] == int(outstanding.argmin())


def mean_wait(router: str, delay: float) -> float:
    """Of 12 replicas that serve one request at a time, in a second on the mean, at 80 % of what they can."""
    replicas, tokens = 12, 5_000
    spec = {
        "requests": 6_000,
        "arrivals": {"process": "poisson", "rate": 0.8 * replicas},
        "lengths": {
            "prompt": {"distribution": "geometric", "mean": tokens},
            "output": {"distribution": "constant", "value": 1},
        },
    }
    engine = EngineConfig(
        kv_blocks=100, block_size=10_000, max_num_seqs=1, max_num_batched_tokens=1_000_000, enable_prefix_caching=False
    )
    result = equal_replicas(
        generate(SynthSpec.model_validate(spec), 21).requests,
        engine,
        LinearStepTimes(base=0, per_token=1 / tokens, per_kv=0),
        replicas=replicas,
        router=router,
        routing=RoutingSettings(load_delay=delay),
    ).run()
    return float(result.requests["queue"].mean())  # type: ignore[arg-type]


def test_with_old_information_all_go_to_the_same_replica_unless_each_looks_at_two() -> None:
    """Mitzenmacher (2000): the least loaded of all is the best choice as long as that is known; once it is known late
    everybody goes there (herding), which is worse than to draw; of two at random the less loaded stays good for longer.
    """
    soon, late = ({name: mean_wait(name, delay) for name in NAMES} for delay in (0.0, 5.0))
    assert soon["least_outstanding"] < soon["power_of_two"] < soon["random"]
    assert late["power_of_two"] < late["random"] < late["least_outstanding"]
    assert late["least_outstanding"] > 5 * soon["least_outstanding"]


NAMES = ("least_outstanding", "power_of_two", "random")


# Gauges.


class Watched:
    """A member of a pool whose gauge is a function of the time."""

    def __init__(self, clock: Clock, number: int) -> None:
        self.number = number
        self.outstanding = {1: None}
        self.engine = self
        self._clock = clock

    @property
    def gauge(self) -> Gauge:
        return Gauge(int(100 * self._clock.now), self.number, 0.0)


@given(st.lists(st.sampled_from([0.01, 0.1, 0.35, 0.5, 2.0]), min_size=1, max_size=30))
def test_gauges_are_of_the_last_scrape(gaps: list[float]) -> None:
    clock = Clock()
    members = [Watched(clock, 4), Watched(clock, 9)]
    gauges = Gauges(clock, members, 0.5)  # type: ignore[arg-type]
    assert gauges.read() == [IDLE, IDLE]
    time = 0.0
    for gap in gaps:
        time += gap

        def look(_: object, time: float = time) -> None:
            scraped = int(100 * (time // 0.5 * 0.5))
            expected = [Gauge(scraped, 4, 0.0), Gauge(scraped, 9, 0.0)] if time >= 0.5 else [IDLE, IDLE]
            assert gauges.read() == expected

        clock.at(time, 1).callbacks = [look]

    def leave(_: object) -> None:
        for member in members:
            member.outstanding.clear()

    clock.at(time + 0.001, 1).callbacks = [leave]
    clock.run_out()  # which ends: nobody is scraped for ever
    assert clock.now <= time + 0.501


def test_gauges_that_are_never_late_are_read_as_they_are() -> None:
    clock = Clock()
    gauges = Gauges(clock, [Watched(clock, 3)], 0.0)  # type: ignore[list-item]
    clock.at(1.25, 1)
    clock.run_out()
    assert gauges.read() == [Gauge(125, 3, 0.0)]


ALL_GAUGES = {"queue": 1.0, "kv": 2.0, "load_aware": 1.0, "prefix": 0.5}


@settings(max_examples=60, deadline=None)
@given(configs(block_size=4), traces(), st.integers(2, 3), st.sampled_from([0.0, 0.007, 0.1]), st.booleans())
def test_an_engine_says_the_same_of_itself_in_a_leap_as_step_by_step(
    config: EngineConfig, trace: pl.DataFrame, replicas: int, interval: float, sheds: bool
) -> None:
    """A router and a door that ask it cannot tell the difference."""
    routing = RoutingSettings(scrape_interval=interval, scorers=ScorersSettings(weights=ALL_GAUGES))
    door = KvUseSettings(policy="kv_use", threshold=0.3) if sheds else None
    leaps, steps = (
        equal_replicas(
            trace,
            config,
            LinearStepTimes(),
            replicas=replicas,
            router="scorers",
            routing=routing,
            admission=door,
            leap=leap,
        ).run()
        for leap in (True, False)
    )
    assert leaps.requests.equals(steps.requests) and leaps.events.equals(steps.events)


@pytest.mark.parametrize("ahead", [False, True])
def test_kv_use_is_what_the_requests_hold(ahead: bool) -> None:
    """One request of 10 tokens that decodes, in blocks of 4, scraped in the midst of a leap."""
    config = EngineConfig(kv_blocks=10, block_size=4, max_num_batched_tokens=256, async_scheduling=ahead)
    trace = pl.DataFrame(
        {"request_id": [0], "arrival": [0.0], "prompt_tokens": [10], "output_tokens": [20]},
        schema_overrides={"arrival": pl.Float64},
    )
    seen: list[tuple[float, float]] = []
    fleet = equal_replicas(trace, config, LinearStepTimes(base=1.0, per_token=0, per_kv=0))
    (replica,) = fleet.service.members  # type: ignore[attr-defined]
    for half in range(1, 19):
        event = fleet.world.clock.at(half + 0.5, 1)
        event.callbacks = [lambda _: seen.append((fleet.world.clock.now, replica.engine.gauge.kv_use))]
    fleet.run()
    # Step n + 1, which runs at n + 0.5, has room for 10 + n tokens; with a step scheduled ahead for one more.
    assert seen == [(n + 0.5, -(-(10 + n + ahead) // 4) / 10) for n in range(1, 19)]
