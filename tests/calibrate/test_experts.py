"""How many experts some tokens reach, and what that takes."""

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from known_profile import EXPERTS, experts, make_profile

from calibrate.experts import ExpertsLaw, activated_experts
from calibrate.parallelism import Parallelism


@given(st.integers(1, 256), st.data())
def test_one_token_reaches_its_own_and_many_reach_all(count: int, data: st.DataObject) -> None:
    each = data.draw(st.integers(1, count))
    assert activated_experts(count, each / count, 1) == pytest.approx(each)
    assert activated_experts(count, each / count, 1_000_000) == pytest.approx(count)
    assert activated_experts(count, each / count, 0) == 0.0


@given(st.integers(1, 256), st.floats(0.0, 1.0), st.integers(0, 4096), st.integers(1, 64))
def test_more_tokens_reach_no_fewer_and_never_more_than_there_are(
    count: int, share: float, tokens: int, more: int
) -> None:
    few, many = activated_experts(count, share, tokens), activated_experts(count, share, tokens + more)
    assert 0.0 <= few <= many <= count


@pytest.mark.parametrize("tokens", [1, 2, 3])
def test_it_is_the_mean_over_all_routings(tokens: int) -> None:
    """Each token reaches one of three, evenly: every sequence of choices is as likely as any other."""
    routings = [[choice // 3**i % 3 for i in range(tokens)] for choice in range(3**tokens)]
    mean = sum(len(set(routing)) for routing in routings) / len(routings)
    assert activated_experts(3, 1 / 3, tokens) == pytest.approx(mean)


def law(ranks: int = 1, slices: float = 1) -> ExpertsLaw:
    return ExpertsLaw(make_profile(EXPERTS).tables["moe"], EXPERTS, EXPERTS.layers, ranks, slices)


@given(st.integers(1, 2048), st.sampled_from([1, 2, 4, 8]))
def test_a_made_up_table_is_reproduced(tokens: int, ranks: int) -> None:
    """Its own share of the tokens, and of the experts, which all tokens may reach; 2 of 8 experts a token."""
    reached = activated_experts(8 / ranks, 0.25, tokens)
    expected = EXPERTS.layers * experts(tokens / ranks, reached)
    assert law(ranks)(tokens) == pytest.approx(expected, rel=1e-9)
    assert law(ranks)(tokens) == law(ranks)(tokens)


@given(st.integers(1, 2048), st.sampled_from([2, 4]))
def test_slices_take_their_share(tokens: int, slices: int) -> None:
    assert law(slices=slices)(tokens) == pytest.approx(law()(tokens) / slices)


@given(st.integers(1, 4096))
def test_it_is_covered_as_far_as_a_rank_was_timed(tokens: int) -> None:
    assert law().covers(tokens) == (tokens <= 2048)
    assert law(2).covers(tokens) == (tokens <= 4096)
    assert law(4).covers(2 * tokens)


def test_rows_need_no_order() -> None:
    table = make_profile(EXPERTS).tables["moe"].sample(fraction=1.0, shuffle=True, seed=3)
    shuffled = ExpertsLaw(pl.DataFrame(table), EXPERTS, EXPERTS.layers, 1, 1)
    assert [shuffled(n) for n in (1, 9, 500)] == [law()(n) for n in (1, 9, 500)]


def test_engines_are_spread_over_their_ranks() -> None:
    assert Parallelism().gpus == 1
    assert Parallelism(2, 4, True).gpus == 8
