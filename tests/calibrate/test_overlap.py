"""Two halves that take turns computing and exchanging, against a schedule of every turn."""

from functools import cache

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from known_profile import EXPERTS, MODEL, make_profile

from calibrate.batch import Batch
from calibrate.collective_law import Collectives
from calibrate.exchange import Exchange, engines_reached
from calibrate.latency import StepLatency
from calibrate.overlap import Halves, OverlapLatency, both, overlapped
from calibrate.parallelism import Parallelism

OPERATIONS = {
    "all_reduce": (5e-6, 1e-11),
    "all_gather": (7e-6, 2e-11),
    "reduce_scatter": (6e-6, 3e-11),
    "all_to_all": (8e-6, 4e-11),
}


@cache
def links(factor: float = 1.0) -> Collectives:
    rows = [
        {"operation": name, "ranks": 2, "bytes": size, "seconds": factor * (latency + size * per_byte)}
        for name, (latency, per_byte) in OPERATIONS.items()
        for size in (64, 1 << 12, 1 << 20)
    ]
    return Collectives(pl.DataFrame(rows), "made by the test")


def by_turns(compute: float, exchange: float, turns: int) -> float:
    """Each half in turn computes, then exchanges; one at a time on the device, and one on the links."""
    device = wires = 0.0
    ready = [0.0, 0.0]  # when each half has exchanged
    for _ in range(turns):
        for half in (0, 1):
            device = max(device, ready[half]) + compute / (2 * turns)
            wires = max(wires, device) + exchange / (2 * turns)
            ready[half] = wires
    return max(ready)


@given(st.floats(1e-6, 1.0), st.floats(1e-6, 1.0), st.integers(1, 200))
def test_it_is_a_schedule_of_every_turn(compute: float, exchange: float, turns: int) -> None:
    assert overlapped(compute, exchange, turns) == pytest.approx(by_turns(compute, exchange, turns), rel=1e-9)


@given(st.floats(0, 1.0), st.floats(0, 1.0), st.integers(1, 200))
def test_it_lies_between_the_longer_and_both(compute: float, exchange: float, turns: int) -> None:
    found = overlapped(compute, exchange, turns)
    assert max(compute, exchange) <= found <= compute + exchange


@given(st.integers(0, 1000), st.integers(2, 100))
def test_halves_are_of_all_tokens(tokens: int, least: int) -> None:
    class Linear:
        def __call__(self, tokens: int) -> float:
            return 1.0 + tokens

        def covers(self, tokens: int) -> bool:
            return tokens <= 500

    halves = Halves(Linear(), least)
    assert halves(tokens) == (2.0 if tokens >= least else 1.0) + tokens
    assert halves.covers(tokens) == (tokens <= 500 or (tokens >= least and tokens // 2 <= 500))


@cache
def engines(factor: float, least: int) -> tuple[StepLatency, OverlapLatency]:
    profile, parallelism = make_profile(MODEL, 2), Parallelism(2)
    return (
        StepLatency(profile, MODEL, parallelism=parallelism, collectives=links(factor)),
        OverlapLatency(profile, MODEL, parallelism=parallelism, collectives=links(factor), min_tokens=least),
    )


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.lists(st.integers(16, 300), max_size=2), st.sampled_from([0.1, 1.0, 20.0]))
def test_a_step_hides_what_its_kernels_cover(decodes: int, prompts: list[int], factor: float) -> None:
    plain, halved = engines(factor, 32)
    prefills, kv_tokens = [(tokens, 0) for tokens in prompts], 50 * decodes
    tokens = decodes + sum(prompts)
    before, after = (one.step(prefills, decodes, kv_tokens) for one in (plain, halved))
    if tokens < 32:
        assert after == before
        return
    reduce = plain.exchange.hidden_states
    whole, in_turns = plain.dense(tokens) + reduce(tokens), (both(plain.dense, tokens), both(reduce, tokens))
    expected = before - whole + overlapped(*in_turns, 2 * MODEL.layers + 1)
    assert after == pytest.approx(expected, rel=1e-9)


def test_leaps_see_the_same_times() -> None:
    _, halved = engines(1.0, 32)
    for decodes in (4, 40):
        law = halved.decode_law(decodes)
        steps = [halved.step((), decodes, 1000 + i * decodes) for i in range(20)]
        assert halved.decode_run(decodes, 1000, 20).tolist() == steps
        assert law is None or [law.seconds(1000 + i * decodes) for i in range(20)] == steps


def test_what_was_assumed_is_stated() -> None:
    _, halved = engines(1.0, 32)
    stated = {one.name: one.note for one in halved.assumptions}
    assert "halved" in stated["engine.overlap_collectives"] and "engine.collectives" in stated


def test_engines_that_share_experts_hide_their_exchange_behind_them() -> None:
    profile, parallelism = make_profile(EXPERTS), Parallelism(1, 2, True)
    known = {"parallelism": parallelism, "collectives": links()}
    plain = StepLatency(profile, EXPERTS, **known)
    halved = OverlapLatency(profile, EXPERTS, min_tokens=32, **known)  # type: ignore[arg-type]
    group = [Batch((), 60, 3000), Batch((), 60, 3000)]
    before, after = (float(one.group_decode_run(group, 1)[0]) for one in (plain, halved))
    assert plain.experts is not None
    whole = plain.experts(120) + plain.exchange.experts(120) + plain.dense(60)
    in_turns = overlapped(both(plain.experts, 120), both(plain.exchange.experts, 120), EXPERTS.layers)
    assert after == pytest.approx(before - whole + in_turns + both(plain.dense, 60), rel=1e-9)


# Tokens that go only where their experts are


def test_all_to_all_sends_each_token_once_to_every_engine_that_it_needs() -> None:
    parallelism = Parallelism(1, 2, True, expert_exchange="all_to_all")
    exchange = Exchange(EXPERTS, parallelism, links())
    size = 50 * EXPERTS.hidden * EXPERTS.dtype_bytes * engines_reached(EXPERTS, 2)
    expected = EXPERTS.layers * 2 * links().seconds("all_to_all", 2, size)
    assert exchange.experts(100) == pytest.approx(expected)
    assert [one.value for one in exchange.assumptions("a device")] == ["all_to_all"]


@given(st.integers(1, 8))
def test_a_token_reaches_at_most_as_many_engines_as_it_has_experts(engines: int) -> None:
    found = engines_reached(EXPERTS, engines)
    assert 1.0 <= found <= min(engines, EXPERTS.experts_per_token) + 1e-12


def test_reached_engines_by_counting() -> None:
    """Two of eight experts, four of them on each of two engines: 28 pairs, of which 12 lie on one."""
    assert engines_reached(EXPERTS, 2) == pytest.approx((12 * 1 + 16 * 2) / 28)


def test_what_nobody_measured_is_listed() -> None:
    from calibrate.fabric import FABRICS

    exchange = Exchange(MODEL, Parallelism(4, pipeline=2), Collectives(None, "links", FABRICS["rtx-4090"]))
    (stated,) = exchange.assumptions("RTX4090")
    assert stated.source == "assumed" and "NCCL's cost model" in stated.note
    assert stated.value == "all_reduce × 4, all_gather × 4, send_recv × 2"
