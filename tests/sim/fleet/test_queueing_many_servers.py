"""Many servers: waiting and blocking are what Erlang's formulas say (Kleinrock, Queueing Systems I, 1975, chapter 3).

Two fleets of ours are such queues.

- One engine whose steps all take the same time is M/M/c: its `max_num_seqs` seats are the servers, a request holds one
  for as many steps as it has output tokens, and that number is geometric, memoryless as an exponential time is. An
  arrival is seen at the next step, so everything is off by a step or so; a service is 500 steps on the mean.
- Replicas that serve one request at a time, in one step of exponential length, are M/M/1 each behind a router that
  draws one, and M/M/c/c behind one that finds the idle replica, while nobody is let in who would wait.
"""

from functools import cache
from math import factorial, sqrt
from typing import Any

import numpy as np
import polars as pl
import pytest
from engine_workloads import LinearStepTimes

from calibrate.curve import Curve
from calibrate.decode_law import DecodeLaw
from sim.engine.config import EngineConfig
from sim.fleet.admission_settings import MaxOutstandingSettings
from sim.fleet.equal_replicas import equal_replicas
from traces.synth import SynthSpec, generate

REQUESTS, WARM_UP = 12_000, 600  # of each seed; a queue starts empty
SEEDS, BATCHES = (11, 12, 13), 20  # batches of each seed, long enough to be nearly independent
STANDARD_ERRORS = 2.66  # of 60 batches: Student's t, two-sided, 99 %
SERVICE = 1.0  # seconds on the mean
STEPS = 500  # of a service on the mean, where it is of many
TOKENS = 5_000  # of a prompt on the mean, where a service is one step

ONE_SEAT = EngineConfig(
    kv_blocks=1_000, block_size=10_000, max_num_seqs=1, max_num_batched_tokens=1_000_000, enable_prefix_caching=False
)
ONE_STEP = LinearStepTimes(base=0, per_token=SERVICE / TOKENS, per_kv=0)


class EqualSteps(LinearStepTimes):
    """Whatever they compute."""

    def decode_law(self, decodes: int) -> DecodeLaw:
        return equal_steps(decodes)


@cache
def equal_steps(decodes: int) -> DecodeLaw:
    return DecodeLaw(decodes, SERVICE / STEPS, Curve([0.0, 1e9], [0.0, 0.0]))


EQUAL_STEPS = EqualSteps(base=SERVICE / STEPS, per_token=0, per_kv=0)


def seats(count: int) -> EngineConfig:
    return ONE_SEAT.model_copy(update={"max_num_seqs": count})


def trace_of(rate: float, prompt: dict[str, Any], output: dict[str, Any], seed: int) -> pl.DataFrame:
    spec = SynthSpec.model_validate(
        {
            "requests": REQUESTS,
            "arrivals": {"process": "poisson", "rate": rate},
            "lengths": {"prompt": prompt, "output": output},
        }
    )
    return generate(spec, seed).requests


def many_steps(rate: float, seed: int) -> pl.DataFrame:
    """Services of many equal steps."""
    return trace_of(rate, {"distribution": "constant", "value": 1}, {"distribution": "geometric", "mean": STEPS}, seed)


def one_step(rate: float, seed: int) -> pl.DataFrame:
    """Services of one step that is as long as the prompt."""
    return trace_of(rate, {"distribution": "geometric", "mean": TOKENS}, {"distribution": "constant", "value": 1}, seed)


def check_mean(of_seeds: list[np.ndarray], expected: float, *, wide: float = 0.1) -> None:
    """The mean of all, by batch means, has `expected` in its confidence interval, which is at most so wide."""
    means = [batch.mean() for values in of_seeds for batch in np.array_split(values[WARM_UP:], BATCHES)]
    reach = STANDARD_ERRORS * float(np.std(means, ddof=1)) / sqrt(len(means))
    assert reach < wide * expected, "an interval so wide would not tell a right queue from a wrong one"
    assert np.mean(means) == pytest.approx(expected, abs=reach)


def erlang_b(servers: int, offered: float) -> float:
    """Share of arrivals that find all servers busy, where nobody waits."""
    terms = [offered**k / factorial(k) for k in range(servers + 1)]
    return terms[-1] / sum(terms)


def erlang_c(servers: int, offered: float) -> float:
    """Share of arrivals that wait."""
    blocked, load = erlang_b(servers, offered), offered / servers
    return blocked / (1 - load + load * blocked)


def blocked_of(servers: int, places: int, offered: float) -> float:
    """Share of arrivals that find `places` others, in M/M/c/K."""
    weights = [
        offered**k / (factorial(k) if k <= servers else factorial(servers) * servers ** (k - servers))
        for k in range(places + 1)
    ]
    return weights[-1] / sum(weights)


def test_the_formulas_are_those_of_the_tables() -> None:
    """Two servers with one erlang; and no more places than servers are Erlang's B."""
    assert erlang_b(2, 1.0) == pytest.approx(0.2) and erlang_c(2, 1.0) == pytest.approx(1 / 3)
    assert blocked_of(3, 3, 2.0) == pytest.approx(erlang_b(3, 2.0))
    assert blocked_of(1, 4, 1.0) == pytest.approx(1 / 5)


@pytest.mark.parametrize(("servers", "load"), [(2, 0.5), (4, 0.6)])
def test_an_engine_of_equal_steps_is_m_m_c(servers: int, load: float) -> None:
    """Who waits, and how long on the mean: W = C / (c μ - λ)."""
    step = SERVICE / STEPS
    rate = load * servers / SERVICE
    waits = [
        equal_replicas(many_steps(rate, seed), seats(servers), EQUAL_STEPS).run().requests["queue"].to_numpy()
        for seed in SEEDS
    ]
    expected = erlang_c(servers, load * servers)
    check_mean(waits, expected / (servers / SERVICE - rate), wide=0.25)
    check_mean([wait > step for wait in waits], expected)


def test_replicas_that_are_drawn_are_m_m_1_each() -> None:
    load, replicas = 0.6, 4
    waits = [
        equal_replicas(
            one_step(load * replicas, seed), ONE_SEAT, ONE_STEP, replicas=replicas, router="random", seed=seed
        )
        .run()
        .requests["queue"]
        .to_numpy()
        for seed in SEEDS
    ]
    check_mean(waits, load * SERVICE / (1 - load), wide=0.15)


def test_the_shortest_queue_lies_between_one_queue_for_all_and_a_draw() -> None:
    """A request that has joined a queue cannot change to another that empties sooner."""
    load, replicas = 0.7, 4
    offered = load * replicas
    trace = one_step(offered, seed=14)
    wait = (
        equal_replicas(trace, ONE_SEAT, ONE_STEP, replicas=replicas, router="least_outstanding")
        .run()
        .requests["queue"][WARM_UP:]
        .mean()
    )
    assert erlang_c(replicas, offered) / (replicas - offered) < wait < load / (1 - load)


@pytest.mark.parametrize("offered", [2.0, 5.0])
def test_replicas_that_turn_away_who_would_wait_are_erlang_b(offered: float) -> None:
    """And it does not matter how the services are distributed: constant ones block as many."""
    servers = 4
    door = MaxOutstandingSettings(policy="max_outstanding", fleet=servers)
    constant = {"distribution": "constant", "value": TOKENS}
    one = {"distribution": "constant", "value": 1}
    for traces in (
        [one_step(offered, seed) for seed in SEEDS],
        [trace_of(offered, constant, one, seed) for seed in SEEDS],
    ):
        shed = []
        for trace in traces:
            result = equal_replicas(
                trace, ONE_SEAT, ONE_STEP, replicas=servers, router="least_outstanding", admission=door
            ).run()
            served = result.requests.filter(pl.col("status") == "finished")
            assert served["queue"].max() == 0  # they found an idle replica
            shed.append((result.requests["status"] == "shed").to_numpy())
        check_mean(shed, erlang_b(servers, offered))


def test_an_engine_with_a_short_queue_is_m_m_c_k() -> None:
    servers, places, offered = 3, 6, 3.0
    door = MaxOutstandingSettings(policy="max_outstanding", fleet=places)
    shed = [
        (
            equal_replicas(many_steps(offered, seed), seats(servers), EQUAL_STEPS, admission=door)
            .run()
            .requests["status"]
            == "shed"
        ).to_numpy()
        for seed in SEEDS
    ]
    check_mean(shed, blocked_of(servers, places, offered))
