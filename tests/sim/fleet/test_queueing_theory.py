"""An engine that serves one request at a time is a single-server queue, whose mean waiting time is known.

M/G/1: W = λ·E[S²] / (2·(1 − ρ)), the Pollaczek–Khinchine formula (Kleinrock, Queueing Systems I, 1975, chapter 5), of
which M/D/1 (W = ρ·D / (2·(1 − ρ))) and M/M/1 (W = ρ / (μ − λ)) are cases. Waiting is `queue`: until first scheduled.
"""

from heapq import heappop, heappush
from math import sqrt
from typing import Any

import numpy as np
import polars as pl
import pytest
from engine_workloads import LinearStepTimes

from sim.engine.config import EngineConfig
from sim.fleet.equal_replicas import equal_replicas
from traces.synth import SynthSpec, generate

REQUESTS = 40_000
WARM_UP = 2_000  # the queue starts empty; these are left out
BATCHES = 20
STANDARD_ERRORS = 3.5

# One sequence at a time, its whole prompt in one step, and one token to generate: a request is one step.
ONE_SERVER = EngineConfig(
    kv_blocks=1_000, block_size=1_000, max_num_seqs=1, max_num_batched_tokens=1_000_000, enable_prefix_caching=False
)


def poisson_trace(rate: float, prompt: dict[str, Any], seed: int) -> pl.DataFrame:
    spec = SynthSpec.model_validate(
        {
            "requests": REQUESTS,
            "arrivals": {"process": "poisson", "rate": rate},
            "lengths": {"prompt": prompt, "output": {"distribution": "constant", "value": 1}},
        }
    )
    return generate(spec, seed).requests


def check_mean(waits: np.ndarray, expected: float) -> None:
    """The mean by batch means: the batches are long enough to be nearly independent of each other."""
    means = [batch.mean() for batch in np.array_split(waits[WARM_UP:], BATCHES)]
    error = float(np.std(means, ddof=1)) / sqrt(BATCHES)
    assert error < 0.06 * expected, "an interval so wide would not tell a right queue from a wrong one"
    assert np.mean(means) == pytest.approx(expected, abs=STANDARD_ERRORS * error)


@pytest.mark.parametrize("load", [0.3, 0.7])
def test_constant_service_is_m_d_1(load: float) -> None:
    service = 0.05
    trace = poisson_trace(load / service, {"distribution": "constant", "value": 100}, seed=1)
    result = equal_replicas(trace, ONE_SERVER, LinearStepTimes(base=service, per_token=0, per_kv=0)).run()
    assert set(result.steps["steps"]) == {1} and len(result.steps) == REQUESTS
    check_mean(result.requests["queue"].to_numpy(), load * service / (2 * (1 - load)))


@pytest.mark.parametrize("load", [0.3, 0.6])
def test_exponential_service_is_m_m_1(load: float) -> None:
    """A geometric number of tokens with a large mean is an exponential one, rounded."""
    tokens, service = 5_000, 0.05
    trace = poisson_trace(load / service, {"distribution": "geometric", "mean": tokens}, seed=2)
    result = equal_replicas(trace, ONE_SERVER, LinearStepTimes(base=0, per_token=service / tokens, per_kv=0)).run()
    service_rate, arrival_rate = 1 / service, load / service
    check_mean(result.requests["queue"].to_numpy(), load / (service_rate - arrival_rate))


def test_round_robin_of_constant_service_is_one_queue_for_all() -> None:
    """With constant service, requests that take turns start when one common queue would start them (Iversen, 1983)."""
    service, replicas = 0.05, 3
    trace = poisson_trace(0.8 * replicas / service, {"distribution": "constant", "value": 100}, seed=3).head(5_000)
    times = LinearStepTimes(base=service, per_token=0, per_kv=0)
    result = equal_replicas(trace, ONE_SERVER, times, replicas=replicas, router="round_robin").run()
    free, expected = [0.0] * replicas, []
    for arrival in trace["arrival"]:
        expected.append(max(arrival, heappop(free)))
        heappush(free, expected[-1] + service)
    assert result.requests["first_scheduled"].to_list() == pytest.approx(expected, abs=1e-9)


def test_of_exponential_services_the_shortest_queue_waits_least() -> None:
    """Joining the shortest queue is optimal (Winston, 1977), two choices come near, and taking turns beats chance."""
    load, tokens, service, replicas = 0.7, 5_000, 0.05, 4
    trace = poisson_trace(replicas * load / service, {"distribution": "geometric", "mean": tokens}, seed=4)
    times = LinearStepTimes(base=0, per_token=service / tokens, per_kv=0)
    least, two, turns = (
        float(equal_replicas(trace, ONE_SERVER, times, replicas=replicas, router=router).run().requests["queue"].mean())
        for router in ("least_outstanding", "power_of_two", "round_robin")
    )
    by_chance = load * service / (1 - load)  # split at random, a Poisson stream makes an M/M/1 of each replica
    assert least < two < turns < by_chance
