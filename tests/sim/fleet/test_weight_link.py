"""Copies over a shared link end when a fluid that is shared equally would have filled them."""

from fractions import Fraction
from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simpy.events import NORMAL

from sim.engine.clock import Clock
from sim.fleet.links.shared_link import SharedLink

COPIES = st.lists(st.tuples(st.integers(0, 40), st.integers(1, 100)), min_size=1, max_size=25)


def copy_all(copies: list[tuple[int, int]], bandwidth: float) -> list[float]:
    """When each of the copies of (quarter seconds, bytes) ended."""
    clock = Clock()
    link = SharedLink(clock, bandwidth)
    ends = [-1.0] * len(copies)

    def begin(index: int) -> None:
        link.copy(copies[index][1], lambda: ends.__setitem__(index, clock.now))

    for index, (quarters, _) in enumerate(copies):
        clock.at(quarters / 4, NORMAL).callbacks = [lambda _, index=index: begin(index)]
    clock.run_out()
    return ends


def fluid(copies: list[tuple[int, int]], bandwidth: Fraction) -> list[Fraction]:
    """The same in exact fractions, from one change to the next."""
    left = {index: Fraction(size) for index, (_, size) in enumerate(copies)}
    ends = [Fraction(-1)] * len(copies)
    now = Fraction(0)
    while left:
        begun = [index for index in left if Fraction(copies[index][0], 4) <= now]
        nexts = [Fraction(copies[index][0], 4) for index in left if index not in begun]
        nexts += [now + left[index] * len(begun) / bandwidth for index in begun]
        then = min(nexts)
        for index in begun:
            left[index] -= (then - now) * bandwidth / len(begun)
            if not left[index]:
                ends[index] = then
                del left[index]
        now = then
    return ends


@settings(max_examples=200, deadline=None)
@given(COPIES, st.integers(1, 200))
def test_ends_are_those_of_a_fluid(copies: list[tuple[int, int]], bandwidth: int) -> None:
    expected = [float(end) for end in fluid(copies, Fraction(bandwidth))]
    assert copy_all(copies, float(bandwidth)) == pytest.approx(expected, rel=1e-12)


@given(st.floats(0.1, 1e9), st.integers(1, 10**12), st.integers(0, 40))
def test_a_copy_alone_takes_its_bytes_over_the_bandwidth(bandwidth: float, size: int, quarters: int) -> None:
    assert copy_all([(quarters, size)], bandwidth) == [quarters / 4 + size / bandwidth]


@given(st.integers(1, 20), st.integers(1, 1000), st.floats(0.1, 1e6))
def test_equal_copies_end_together(count: int, size: int, bandwidth: float) -> None:
    assert copy_all([(0, size)] * count, bandwidth) == [size * count / bandwidth] * count


@given(COPIES)
def test_without_a_limit_copies_take_no_time(copies: list[tuple[int, int]]) -> None:
    assert copy_all(copies, inf) == [quarters / 4 for quarters, _ in copies]
