"""What unequal contexts cost: exact on its grid, linear between, and the better of two models chosen by its errors."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibrate.model import load_model
from calibrate.profile import Profile, Provenance
from calibrate.skew import ALONE, Prefill, Skew
from calibrate.skew_models import (
    NeighbourExcess,
    WaveExcess,
    _contexts,
    judge,
    skew_of,
    unequal_batches,
    wave_excess,
)
from ground.errors import UserError

MODEL = load_model("Llama-3.1-8B")
VARIATIONS = [0.0, 0.02, 0.05, 0.1, 0.2, 0.35, 0.6, 1.0, 2.0, 4.0]
LONGEST = [1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 7.0, 10.0, 16.0, 32.0]


def bent(sequences: int, variation: float, longest: float, prefill: Prefill) -> float:
    """Any excess of no law that interpolation would know between the nodes."""
    return variation**2 + 0.3 * (longest - 1.0) ** 1.5 + 0.01 * sequences * variation + 1e-4 * sum(prefill)


def ask(skew: Skew, sequences: int, variation: float, longest: float, prefill: Prefill = ALONE) -> float:
    """For a batch of mean 1000 tokens."""
    sums = (sequences * 1e3, sequences * 1e6 * (1.0 + variation), longest * 1e3)
    return float(skew.relative(sequences, *(np.array([value]) for value in sums), prefill)[0])


contexts_of_a_batch = st.lists(st.integers(0, 5000), min_size=2, max_size=40)


def sums_of(contexts: list[int]) -> tuple[float, float, float]:
    return float(sum(contexts)), float(sum(tokens * tokens for tokens in contexts)), float(max(contexts))


# Between the nodes


@given(st.integers(2, 8), st.sampled_from(VARIATIONS), st.sampled_from(LONGEST), st.sampled_from([ALONE, (128, 512)]))
def test_it_is_exact_at_its_nodes(sequences: int, variation: float, longest: float, prefill: Prefill) -> None:
    expected = bent(sequences, variation, longest, prefill)
    assert ask(Skew(bent), sequences, variation, longest, prefill) == pytest.approx(expected, rel=1e-9, abs=1e-12)


@given(st.integers(2, 8), st.floats(0.0, 4.0), st.floats(1.0, 32.0))
def test_an_excess_that_is_linear_in_each_is_exact_everywhere(sequences: int, variation: float, longest: float) -> None:
    def bilinear(_: int, variation: float, longest: float, __: Prefill) -> float:
        return 0.1 + 0.2 * variation + 0.03 * longest + 0.004 * variation * longest

    expected = bilinear(sequences, variation, longest, ALONE)
    assert ask(Skew(bilinear), sequences, variation, longest) == pytest.approx(expected, rel=1e-9)


@given(st.sampled_from(VARIATIONS[1:-1]), st.sampled_from(LONGEST[1:-1]), st.floats(0.0, 4.0), st.floats(1.0, 32.0))
def test_it_does_not_jump_at_a_node(variation: float, longest: float, any_variation: float, any_longest: float) -> None:
    skew, near = Skew(bent), 1e-7
    for low, high in (
        ((variation * (1 - near), any_longest), (variation * (1 + near), any_longest)),
        ((any_variation, longest * (1 - near)), (any_variation, longest * (1 + near))),
    ):
        assert ask(skew, 8, *low) == pytest.approx(ask(skew, 8, *high), rel=1e-4, abs=1e-4)


@given(st.lists(contexts_of_a_batch, min_size=1, max_size=8), st.integers(2, 40))
def test_many_steps_at_once_are_those_one_by_one_bit_for_bit(batches: list[list[int]], sequences: int) -> None:
    sums = np.array([sums_of(contexts) for contexts in batches]).T
    at_once = Skew(bent).relative(sequences, *sums)
    one_by_one = Skew(bent)
    assert at_once.tolist() == [float(one_by_one.relative(sequences, *step[:, None])[0]) for step in sums.T]


@given(st.integers(2, 300), st.integers(0, 100_000))
def test_equal_contexts_take_no_longer(sequences: int, tokens: int) -> None:
    sums = np.array(sums_of([tokens] * sequences))
    for excess in (waves(), neighbours()):
        found = float(Skew(excess).relative(sequences, *sums[:, None])[0])
        assert found == pytest.approx(0.0, abs=1e-9)


@settings(max_examples=50)
@given(contexts_of_a_batch, st.sampled_from([ALONE, (64, 0), (500, 3000)]))
def test_unequal_contexts_never_take_less(contexts: list[int], prefill: Prefill) -> None:
    sums = np.array(sums_of(contexts))
    assert Skew(waves()).relative(len(contexts), *sums[:, None], prefill)[0] >= 0.0


def test_one_sequence_or_none_has_no_excess() -> None:
    sums = (np.array([1e3, 2e3]), np.array([1e9, 1e9]), np.array([1e3, 2e3]))
    assert Skew(bent).relative(1, *sums).tolist() == [0.0, 0.0]
    assert Skew(bent).relative(0, *sums).tolist() == [0.0, 0.0]


def test_beyond_its_grid_the_border_holds() -> None:
    skew = Skew(bent)
    assert ask(skew, 4, 100.0, 1000.0) == ask(skew, 4, 4.0, 32.0)
    assert ask(skew, 4, 0.0, 0.1) == ask(skew, 4, 0.0, 1.0)


def test_a_node_is_computed_once_for_all_batches_that_are_padded_alike() -> None:
    asked = []

    def excess(sequences: int, variation: float, longest: float, prefill: Prefill) -> float:
        asked.append((sequences, variation, longest, prefill))
        return 0.5

    skew = Skew(excess)
    for sequences, prefill in ((9, (100, 3)), (16, (128, 64)), (12, (150, 0))):
        ask(skew, sequences, 0.3, 1.7, prefill)
    nodes = {(v, longest) for v in (0.2, 0.35) for longest in (1.5, 2.0)}
    assert len(asked) == len(set(asked)) == 8, "a prefill behind nothing is not one behind a prefix"
    assert {(v, longest) for _, v, longest, _ in asked} == nodes
    assert {(sequences, prefill) for sequences, _, _, prefill in asked} == {(16, (128, 64)), (16, (128, 0))}


# A batch with a wanted spread


@given(st.integers(2, 300), st.floats(0.0, 4.0), st.floats(1.0, 32.0))
def test_contexts_have_the_wanted_longest_and_fall(sequences: int, variation: float, longest: float) -> None:
    contexts = _contexts(sequences, variation, longest)
    assert len(contexts) == sequences and contexts.min() >= 0.0
    assert contexts[0] == contexts.max() == pytest.approx(min(longest, sequences))
    assert (np.diff(contexts) <= 1e-12).all()


@pytest.mark.parametrize("sequences", [16, 64, 256])
@pytest.mark.parametrize(("variation", "longest"), [(0.02, 1.25), (0.1, 2.0), (0.2, 2.5), (0.35, 4.0), (0.6, 4.0)])
def test_contexts_have_the_wanted_mean_and_variation(sequences: int, variation: float, longest: float) -> None:
    """Where such a batch exists: one sequence of the longest must not already vary more than all may."""
    contexts = _contexts(sequences, variation, longest)
    assert contexts.mean() == pytest.approx(1.0, abs=0.01)
    least = ((longest - 1) ** 2 + (longest - 1) ** 2 / (sequences - 1)) / sequences
    found = (contexts**2).mean() / contexts.mean() ** 2 - 1
    assert found == pytest.approx(max(variation, least), rel=0.13)


def test_contexts_that_cannot_be_are_the_nearest() -> None:
    assert _contexts(4, 0.0, 1.0).tolist() == [1.0] * 4
    assert _contexts(4, 0.1, 30.0).tolist() == [4.0, 0.0, 0.0, 0.0]
    assert _contexts(3, 0.0, 2.0).tolist() == pytest.approx([2.0, 0.5, 0.5])


# Profiles of a device whose kernel is known, with unequal batches of a known excess.

MULTIPROCESSORS, BLOCK_RATE, TOTAL_RATE, START = 128, 5e8, 2e10, 3e-6  # of the RTX 4090


def attention_table() -> pl.DataFrame:
    def beside(n: int, kv: int) -> float:
        return 2e-5 + START * float(np.ceil(n * MODEL.heads / MULTIPROCESSORS)) + kv / BLOCK_RATE

    rows = [(16, 0, n, kv, beside(n, kv)) for n in (1, 4, 32) for kv in (16, 256, 1024, 4096)]
    rows += [(16, 0, 0, 0, 1e-5)]
    rows += [(0, 0, n, kv, MODEL.kv_heads * n * kv / TOTAL_RATE) for n in (1, 8, 64) for kv in (16, 256, 4096)]
    names = ["prefill_chunk", "kv_prefill", "n_decode", "kv_decode", "seconds"]
    return pl.DataFrame(rows, schema=names, orient="row")


Row = tuple[int, int, int, int, int, int]  # chunk, prefix, sequences, long ones, short context, long context

BATCHES: list[Row] = [
    (chunk, prefix, n, max(1, n // part), short, short * ratio)
    for chunk, prefix in (ALONE, (64, 256))
    for n in (16, 32, 64)
    for part in (2, 4, 16)
    for short in (128, 512)
    for ratio in (2, 4, 8)
]


def make_profile(excess: Callable[[Row], float], device: str = "RTX4090", model: str | None = None) -> Profile:
    rows = [(*batch, 1e-4 * (1.0 + excess(batch)), 1e-4) for batch in BATCHES]
    names = ["prefill_chunk", "kv_prefill", "n_decode", "n_long", "kv_short", "kv_long", "seconds", "equal_seconds"]
    return Profile(
        name="made",
        device=device,
        model=MODEL,
        tp=1,
        dtype="bfloat16",
        provenance=Provenance("imported", "made by the test", "none"),
        tables={"attention": attention_table(), "skew": pl.DataFrame(rows, schema=names, orient="row")},
        grid={} if model is None else {"skew_model": model},
    )


def waves() -> WaveExcess:
    found = wave_excess(make_profile(lambda _: 0.0))
    assert found is not None
    return found


def by_waves(batch: Row) -> float:
    chunk, prefix, n, long, short, longest = batch
    return waves().of_contexts(np.repeat([float(longest), float(short)], [long, n - long]), (chunk, prefix))


def smooth(batch: Row) -> float:
    chunk, _, n, long, short, longest = batch
    mean = (long * longest + (n - long) * short) / n
    return 0.4 * (longest / mean - 1.0) * (0.5 if chunk else 1.0)


def neighbours() -> NeighbourExcess:
    return NeighbourExcess(unequal_batches(make_profile(smooth)))


# Models and their judge


def test_measured_batches_are_described_by_their_moments() -> None:
    table = unequal_batches(make_profile(smooth))
    for row in table.sample(10, seed=2).iter_rows(named=True):
        counts = [row["n_long"], row["n_decode"] - row["n_long"]]
        contexts = np.repeat([row["kv_long"], row["kv_short"]], counts).astype(float)
        assert row["sequences"] == len(contexts)
        assert row["variation"] == pytest.approx(contexts.var() / contexts.mean() ** 2)
        assert row["longest"] == pytest.approx(contexts.max() / contexts.mean())
        assert (row["chunk"], row["prefix"]) == (row["prefill_chunk"], row["kv_prefill"])
        assert row["excess"] == pytest.approx(row["seconds"] / row["equal_seconds"] - 1)


def test_the_judge_finds_the_model_that_made_the_measurements() -> None:
    errors = judge(make_profile(by_waves))
    assert errors.keys() == {"mean_context", "neighbours", "waves"}
    assert errors["waves"]["p90"] == pytest.approx(0.0, abs=1e-9)
    assert errors["waves"]["p90"] < min(errors["neighbours"]["p90"], errors["mean_context"]["p90"])
    assert {error["points"] for error in errors.values()} == {float(len(BATCHES))}

    errors = judge(make_profile(smooth))
    assert errors["neighbours"]["p90"] < min(errors["waves"]["p90"], errors["mean_context"]["p90"])

    errors = judge(make_profile(lambda _: 0.0))
    assert errors["mean_context"]["p90"] == errors["neighbours"]["p90"] == 0.0
    assert errors["waves"]["p90"] > 0.0


def test_the_judge_asks_a_sample_alone_and_beside_a_prefill() -> None:
    errors = judge(make_profile(smooth), sample=9)
    assert errors["neighbours"]["points"] == 2 * 9


def test_a_device_whose_kernel_is_not_known_has_no_waves() -> None:
    for device in ("unheard of", "H100"):  # which runs the third version of FlashAttention
        profile = make_profile(smooth, device)
        assert wave_excess(profile) is None
        assert judge(profile).keys() == {"mean_context", "neighbours"}
    assert wave_excess(replace(make_profile(smooth), model=None)) is None


def test_split_sequences_are_evened_out() -> None:
    few, enough = np.array([3000.0] + [100.0] * 24), np.array([3000.0] + [100.0] * 25)  # 25.6 × 8 blocks is 1.6 × 128
    assert waves().of_contexts(few, ALONE) == 0.0
    assert waves().of_contexts(enough, ALONE) > 0.2
    assert waves().of_contexts(few, (64, 0)) > 0.0, "beside a prefill nothing is split"


def test_neighbours_are_nearly_exact_at_a_measured_batch() -> None:
    table = unequal_batches(make_profile(smooth))
    apart = table.filter((pl.col("sequences") == 32) & (pl.col("kv_short") == 128) & (pl.col("chunk") == 0))
    law = NeighbourExcess(apart)
    for row in apart.iter_rows(named=True):
        found = law(32, row["variation"], row["longest"], ALONE)
        assert found == pytest.approx(row["excess"], rel=0.05, abs=0.01)


@given(st.integers(0, 53), st.booleans())
def test_a_row_without_itself_is_as_if_it_had_not_been_measured(index: int, beside: bool) -> None:
    table = unequal_batches(make_profile(smooth))
    part = table.filter((pl.col("chunk") > 0) == beside)
    row, prefill = part.row(index, named=True), (64, 256) if beside else ALONE
    point = (row["n_decode"], row["variation"], row["longest"], prefill)
    rest = pl.concat([part.slice(0, index), part.slice(index + 1)])
    assert NeighbourExcess(table)(*point, without=index) == pytest.approx(NeighbourExcess(rest)(*point), rel=1e-12)
    spoilt = table.with_columns(
        excess=pl.when(pl.int_range(pl.len()) == index + beside * 54).then(99.0).otherwise("excess")
    )
    assert NeighbourExcess(spoilt)(*point, without=index) == NeighbourExcess(table)(*point, without=index)


def test_neighbours_know_only_what_was_measured() -> None:
    alone_only = NeighbourExcess(unequal_batches(make_profile(smooth)).filter(pl.col("chunk") == 0))
    assert alone_only(32, 0.5, 2.0, (64, 256)) == 0.0
    assert alone_only(32, 0.5, 2.0, ALONE) > 0.0
    assert alone_only(32, 0.0, 1.0, ALONE) == 0.0


def test_a_profile_names_its_model_of_skew() -> None:
    assert skew_of(make_profile(smooth)) is None
    for name in ("waves", "neighbours"):
        found = skew_of(make_profile(smooth, model=name))
        assert found is not None and isinstance(found[0], Skew) and found[1] == name
        assert ask(found[0], 32, 0.6, 3.0) > 0.0


def test_a_model_of_skew_that_cannot_be_is_refused() -> None:
    with pytest.raises(UserError, match=r"profile made: grid.skew_model is 'guess'"):
        skew_of(make_profile(smooth, model="guess"))
    with pytest.raises(UserError, match=r"profile made: grid.skew_model is 'waves'"):
        skew_of(make_profile(smooth, "unheard of", "waves"))
    profile = make_profile(smooth, model="neighbours")
    del profile.tables["skew"]
    with pytest.raises(UserError, match=r"profile made: no kernel class skew for Llama-3.1-8B"):
        skew_of(profile)
