"""What an operator predicts of a site: exact where nothing else is there, and never less for more that is."""

from collections.abc import Sequence

import polars as pl
import pytest
from engine_workloads import LinearStepTimes
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.engine.clock import Clock
from sim.engine.config import EngineConfig
from sim.engine.request import Request
from sim.fleet.equal_replicas import equal_replicas
from sim.fleet.links.network import Network
from sim.fleet.placement.placement import Task
from sim.fleet.places.site_estimate import ExpectedOutput, SiteEstimate
from sim.fleet.places.wide_area import Payload, WideArea

TASK = Task("c", None, None)
CONFIG = EngineConfig(kv_blocks=10_000, max_num_seqs=4, max_num_batched_tokens=64)
TIMES = LinearStepTimes(per_kv=0.0)


class Asked:
    def step(self, prefills: Sequence[tuple[int, int]], decodes: int, kv_tokens: int) -> float:
        return TIMES.step(prefills, decodes, kv_tokens)


def estimate(
    clock: Clock, *, output: int = 20, replicas: int = 1, rtt: float = 0.0, up: float | None = None
) -> SiteEstimate:
    route = WideArea(clock, Network(clock), "a", Payload(2.0, 3.0, True, lambda _: 0), rtt=rtt, up=up, down=30.0)
    guess = ExpectedOutput(lambda _: output)
    return SiteEstimate(
        clock, route, CONFIG, Asked(), guess, replicas=lambda: replicas, gpus=2, gpu_hour_price=7.2, capacity=None
    )


@given(st.integers(1, 300), st.integers(1, 50))
def test_alone_it_is_what_the_engine_takes(prompt: int, output: int) -> None:
    site = estimate(Clock(), output=output, rtt=0.2, up=100.0)
    trace = pl.DataFrame({"request_id": [0], "arrival": [0.0], "prompt_tokens": [prompt], "output_tokens": [output]})
    service = equal_replicas(trace, CONFIG, TIMES).run().requests["e2e"][0]
    chunks = -(-prompt // 64)
    even = chunks * 64 - prompt  # it reckons with chunks of equal size
    network = 0.2 + prompt * 2 / 100 + 3 / 30
    assert site.latency(Request(0, 0.0, prompt, 99), TASK) == pytest.approx(network + service, abs=1e-4 * even + 1e-9)
    assert site.cost(Request(0, 0.0, prompt, 99), TASK) == pytest.approx(7.2 * 2 / 3600 * service, rel=0.05)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 300), min_size=1, max_size=12), st.integers(1, 3))
def test_more_that_is_there_never_makes_it_faster(prompts: list[int], replicas: int) -> None:
    site = estimate(Clock(), replicas=replicas)
    asked = Request(99, 0.0, 50, 20)
    before = site.latency(asked, TASK)
    for number, prompt in enumerate(prompts):
        site.sent(Request(number, 0.0, prompt, 20), TASK)
        after = site.latency(asked, TASK)
        assert after > before
        before = after
    assert site.fill == len(prompts) / (4 * replicas)


def test_prompts_are_worked_off_and_errors_forgotten() -> None:
    clock = Clock()
    site = estimate(clock)
    asked = Request(9, 0.0, 50, 20)
    alone = site.latency(asked, TASK)
    slow = Request(0, 0.0, 64, 20)
    site.sent(slow, TASK)
    ahead = TIMES.step([(64, 0)], 0, 0)
    more = 19 * (TIMES.step([], 2, 0) - TIMES.step([], 1, 0))  # its tokens would come beside another's
    assert site.latency(asked, TASK) == pytest.approx(alone + ahead + more)
    clock.timeout(100.0)
    clock.run_out()
    assert site.latency(asked, TASK) == pytest.approx(alone + more)
    slow.first_token, slow.finish = 100.0 - 19 * 0.05, 100.0
    site.ended(slow)
    measured = site.latency(asked, TASK)
    assert measured > 19 * 0.05 + alone - 19 * TIMES.step([], 1, 0)  # tokens came slowly, and it was far too late
    clock.timeout(1000.0)
    clock.run_out()
    assert site.latency(asked, TASK) == pytest.approx(alone + 19 * (0.05 - TIMES.step([], 1, 0)))


def test_an_answer_that_came_whole_tells_nothing_of_its_tokens() -> None:
    site = estimate(Clock())
    asked, whole = Request(9, 0.0, 50, 20), Request(0, 0.0, 64, 20)
    before = site.cost(asked, TASK)
    site.sent(whole, TASK)
    whole.first_token = whole.finish = 3.0
    site.ended(whole)
    assert site.cost(asked, TASK) == before


def test_the_mean_of_a_class_is_learned() -> None:
    expected = ExpectedOutput(lambda name: 7)
    assert expected("a") == 7
    for tokens in (10, 20, 60):
        expected.ended("a", tokens)
    assert expected("a") == 30 and expected("b") == 7
