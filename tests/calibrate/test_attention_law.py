"""One kernel for prefills and decodes: a table made from a known law is reproduced on its grid and between."""

from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st
from known_profile import CHUNKS, CONTEXTS, DECODES, MODEL, PREFIXES, attention, decode, make_profile, prefill

from calibrate.attention_law import AttentionLaw
from calibrate.batch import Batch
from calibrate.latency import StepLatency
from calibrate.skew import Prefill, Skew, Spread


@cache
def law(*, mixed: bool = True) -> AttentionLaw:
    return AttentionLaw(make_profile(mixed=mixed), MODEL.layers, None)


@cache
def latency() -> StepLatency:
    return StepLatency(make_profile(), MODEL)


def ask(of: AttentionLaw, prefills: list[tuple[int, int]], decodes: int, kv_tokens: int) -> tuple[float, bool]:
    alone = latency()._law(decodes).attention if decodes else None
    return of.mixed(prefills, decodes, kv_tokens, None, alone)


prefills_inside = st.lists(st.tuples(st.integers(16, 512), st.integers(0, 1000)), min_size=1, max_size=4)


@st.composite
def mixed_steps(draw: st.DrawFn) -> tuple[list[tuple[int, int]], int, int]:
    """Prefills, decodes and the sum of their contexts, all of it inside the grid."""
    decodes = draw(st.integers(0, 64))
    return draw(prefills_inside), decodes, draw(st.integers(0, 4000 * decodes)) if decodes else 0


@given(mixed_steps())
def test_the_law_is_found_everywhere_inside_the_grid(step: tuple[list[tuple[int, int]], int, int]) -> None:
    seconds, inside = ask(law(), *step)
    assert seconds == pytest.approx(MODEL.layers * attention(*step), rel=1e-9)
    assert inside


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("prefix", PREFIXES)
def test_every_measured_point_is_itself(chunk: int, prefix: int) -> None:
    table = make_profile().tables["attention"]
    for row in table.iter_rows(named=True):
        if row["n_decode"] and (row["prefill_chunk"], row["kv_prefill"]) == (chunk, prefix):
            n = row["n_decode"]
            found, inside = ask(law(), [(chunk, prefix)], n, n * row["kv_decode"])
            assert inside and found == pytest.approx(MODEL.layers * row["seconds"], rel=1e-12)


@given(prefills_inside)
def test_several_prefills_are_launched_once(prefills: list[tuple[int, int]]) -> None:
    together, _ = ask(law(), prefills, 0, 0)
    apart = sum(ask(law(), [one], 0, 0)[0] for one in prefills)
    launch = MODEL.layers * prefill(CHUNKS[0], 0)
    assert apart - together == pytest.approx((len(prefills) - 1) * launch, abs=1e-12)


@given(mixed_steps())
def test_without_such_batches_prefills_and_decodes_are_calls_of_their_own(
    step: tuple[list[tuple[int, int]], int, int],
) -> None:
    prefills, decodes, kv_tokens = step
    expected = sum(prefill(*one) for one in prefills)
    expected += decode(decodes, kv_tokens / decodes) if decodes else 0.0
    seconds, inside = ask(law(mixed=False), *step)
    assert seconds == pytest.approx(MODEL.layers * expected, rel=1e-9)
    assert inside and not law(mixed=False).one_kernel and law().one_kernel


@given(mixed_steps(), st.integers(0, 3000))
def test_more_context_never_takes_less_time(step: tuple[list[tuple[int, int]], int, int], more: int) -> None:
    prefills, decodes, kv_tokens = step
    if decodes:
        assert ask(law(), prefills, decodes, kv_tokens + more)[0] >= ask(law(), *step)[0] - 1e-15


def test_outside_the_grid_it_says_so() -> None:
    inside = ([(100, 500)], 8, 8 * 1000)
    assert ask(law(), *inside)[1]
    for prefills, decodes, kv_tokens in (
        ([(600, 500)], 8, 8 * 1000),
        ([(100, 1500)], 8, 8 * 1000),
        ([(100, 500)], 65, 65 * 1000),
        ([(100, 500)], 8, 8 * (CONTEXTS[-1] + 1)),
        ([(100, 500), (8, 0)], 8, 8 * 1000),
    ):
        assert not ask(law(), prefills, decodes, kv_tokens)[1], (prefills, decodes, kv_tokens)


def test_beyond_the_longest_chunk_decodes_add_what_they_add_there() -> None:
    base, _ = ask(law(), [(2000, 0)], 0, 0)
    found, _ = ask(law(), [(2000, 0)], 4, 400)
    at_border = ask(law(), [(CHUNKS[-1], 0)], 4, 400)[0] - ask(law(), [(CHUNKS[-1], 0)], 0, 0)[0]
    assert found - base == pytest.approx(at_border, rel=1e-9)


def test_beyond_the_most_decodes_and_the_longest_context_the_law_goes_on() -> None:
    for n, context in ((2 * DECODES[-1], 1000), (4, 2 * CONTEXTS[-1])):
        found, _ = ask(law(), [(64, 0)], n, n * context)
        assert found == pytest.approx(MODEL.layers * attention([(64, 0)], n, n * context), rel=1e-9)


def test_unequal_contexts_lengthen_a_mixed_step_by_the_excess_of_all_its_prefills() -> None:
    asked: list[tuple[int, float, float, Prefill]] = []

    def excess(sequences: int, variation: float, longest: float, prefill: Prefill) -> float:
        asked.append((sequences, variation, longest, prefill))
        return 0.25

    skewed = AttentionLaw(make_profile(), MODEL.layers, Skew(excess))
    prefills, contexts = [(64, 200), (192, 0)], [100, 300]
    alone = latency()._law(2).attention
    spread = Spread(sum(tokens * tokens for tokens in contexts), max(contexts))
    equal, _ = skewed.mixed(prefills, 2, 400, None, alone)
    unequal, _ = skewed.mixed(prefills, 2, 400, spread, alone)
    assert unequal == pytest.approx(1.25 * equal)
    assert {prefill for _, _, _, prefill in asked} == {(256, 0)}, "the longest chunk's prefix, and all tokens"


# Prompts of one token


@given(
    st.lists(st.integers(0, 4000), min_size=1, max_size=4),
    st.lists(st.integers(0, 4000), max_size=8),
    st.booleans(),
)
def test_one_token_prefills_are_decodes(prefixes: list[int], contexts: list[int], with_spread: bool) -> None:
    def spread(of: list[int]) -> Spread | None:
        return Spread(sum(tokens * tokens for tokens in of), max(of)) if with_spread and of else None

    prefills = [(1, prefix) for prefix in prefixes]
    found = latency().step(prefills, len(contexts), sum(contexts), spread(contexts))
    everyone = contexts + prefixes
    assert found == latency().step((), len(everyone), sum(everyone), spread(everyone))
    batch = Batch(prefills, len(contexts), sum(contexts), spread(contexts)).one_token_each()
    assert batch[:3] == ((), len(everyone), sum(everyone))
    if with_spread or not contexts:
        assert batch.spread == Spread(sum(tokens * tokens for tokens in everyone), max(everyone))


def test_a_longer_chunk_beside_them_keeps_them_prefills() -> None:
    batch = Batch([(1, 50), (2, 50)], 3, 300)
    assert batch.one_token_each() is batch
    assert Batch((), 3, 300).one_token_each() == Batch((), 3, 300)
