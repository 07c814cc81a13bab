"""Decode runs: sums in closed form are the sums, whoever asks for them and however many steps at once."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibrate.curve import Curve
from calibrate.decode_law import DecodeLaw, DecodeRun, SummedRun


@st.composite
def laws(draw: st.DrawFn) -> DecodeLaw:
    """Attention may rise, fall and bend, and be hidden behind `least`, as measured laws may."""
    xs = sorted(draw(st.sets(st.integers(0, 3000), min_size=1, max_size=10)))
    ys = [draw(st.floats(1e-6, 1e-2)) for _ in xs]
    fixed, least = draw(st.floats(0.0, 0.02)), draw(st.sampled_from([0.0, 0.003, 0.015]))
    outside = draw(st.sampled_from([(), ("dense",), ("dense", "attention")]))
    return DecodeLaw(draw(st.integers(1, 40)), fixed, Curve(xs, ys), least, outside)


def singly(law: DecodeLaw, kv_tokens: int, steps: int) -> np.ndarray:
    return np.array([law.seconds(kv_tokens + i * law.decodes) for i in range(steps)])


@given(laws(), st.integers(0, 5000))
def test_a_step_is_what_runs_but_at_least_what_the_host_takes(law: DecodeLaw, kv_tokens: int) -> None:
    expected = max(law.fixed + law.attention(kv_tokens), law.least)
    assert law.seconds(kv_tokens) == pytest.approx(expected, rel=1e-9, abs=1e-12)


@given(laws(), st.floats(0.0, 1e5), st.integers(0, 4000), st.integers(1, 400))
def test_the_end_of_every_step_is_the_sum_up_to_it(law: DecodeLaw, start: float, kv_tokens: int, steps: int) -> None:
    run = DecodeRun(start, law, kv_tokens)
    ends = start + np.cumsum(singly(law, kv_tokens, steps))
    assert [run.end(i + 1) for i in range(steps)] == pytest.approx(ends.tolist(), rel=1e-12, abs=1e-12)


@given(laws(), st.integers(0, 4000), st.lists(st.integers(1, 120), min_size=1, max_size=12))
def test_how_many_steps_are_taken_at_once_changes_no_bit(law: DecodeLaw, kv_tokens: int, leaps: list[int]) -> None:
    at_once, run = DecodeRun(17.25, law, kv_tokens), DecodeRun(17.25, law, kv_tokens)
    for taken, leap in zip(np.cumsum(leaps).tolist(), leaps, strict=True):
        assert run.goes_on(law.decodes, kv_tokens + run.taken * law.decodes)
        assert not run.goes_on(law.decodes + 1, kv_tokens + run.taken * law.decodes)
        assert run.end(leap) == at_once.end(taken)
        run.take(leap)
        assert run.taken == taken


@given(laws(), st.integers(0, 4000), st.integers(0, 50), st.integers(1, 200), st.floats(0.0, 1.0))
def test_an_arrival_is_seen_at_the_first_boundary_from_it_on(
    law: DecodeLaw, kv_tokens: int, taken: int, steps: int, share: float
) -> None:
    run, summed = DecodeRun(3.0, law, kv_tokens), SummedRun(3.0, singly(law, kv_tokens, taken + steps))
    for either in (run, summed):
        if taken:
            either.take(taken)
        first, last = either.end(1), either.end(steps)
        for time in (first, last, first + share * (last - first)):
            found = either.steps_until(time)
            assert either.end(found) >= time
            assert found == 1 or either.end(found - 1) < time


@given(laws(), st.integers(0, 6000), st.lists(st.integers(1, 60), min_size=1, max_size=5))
def test_a_run_counts_what_its_steps_count(law: DecodeLaw, kv_tokens: int, leaps: list[int]) -> None:
    run = DecodeRun(0.0, law, kv_tokens)
    for leap in leaps:
        run.take(leap)
    expected: Counter[str] = Counter()
    for i in range(sum(leaps)):
        expected.update(law.outside)
        if "attention" not in law.outside and not law.attention.covers(kv_tokens + i * law.decodes):
            expected["attention"] += 1
    assert law.extrapolated == expected


def test_a_summed_run_never_goes_on() -> None:
    run = SummedRun(1.0, np.array([0.5, 0.25]))
    assert (run.end(1), run.end(2)) == (1.5, 1.75)
    run.take(1)
    assert run.end(1) == 1.75
    assert not run.goes_on(4, 400)
