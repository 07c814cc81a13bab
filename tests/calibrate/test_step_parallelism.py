"""Steps as an engine runs them: padded to CUDA graphs, beside the host's work, in lock-step, over several ranks."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from known_profile import EXPERTS, MODEL, calls, dense, experts_seconds, host, make_profile, own_kernels

from calibrate.batch import Batch
from calibrate.collective_law import Collectives
from calibrate.latency import StepLatency
from calibrate.parallelism import Parallelism
from calibrate.profile import Profile
from calibrate.skew import Spread
from ground.errors import UserError

SIZES = [1, 2, 4, 8, 16, 32]

# Seconds of a collective: linear in bytes, and exact at the measured ones, which are all that a test asks for.
LAWS = {
    ("all_reduce", 2): (5e-6, 1e-11),
    ("all_reduce_nccl", 2): (9e-6, 1e-11),
    ("all_gather", 2): (7e-6, 2e-11),
    ("reduce_scatter", 2): (6e-6, 3e-11),
}


def collectives(sizes: Sequence[float], without: str = "") -> Collectives:
    rows = [
        {"operation": name, "ranks": ranks, "bytes": size, "seconds": latency + size * per_byte}
        for (name, ranks), (latency, per_byte) in LAWS.items()
        if name != without
        for size in sizes
    ]
    return Collectives(pl.DataFrame(rows), "made by the test")


def law(name: str, size: float) -> float:
    latency, per_byte = LAWS[name, 2]
    return latency + size * per_byte


@st.composite
def batches(draw: st.DrawFn, *, prefills: bool = True, idle: bool = False) -> Batch:
    """Inside the grid of the known profile, with or without a spread."""
    contexts = draw(st.lists(st.integers(0, 3000), min_size=0 if prefills or idle else 1, max_size=40))
    least = 0 if contexts or idle else 1
    chunks = st.lists(st.tuples(st.integers(16, 200), st.integers(0, 1000)), min_size=least, max_size=3)
    spread = Spread(sum(tokens * tokens for tokens in contexts), max(contexts)) if contexts else None
    return Batch(
        draw(chunks) if prefills else (), len(contexts), sum(contexts), spread if draw(st.booleans()) else None
    )


def tokens_of(batch: Batch) -> int:
    return max(1, batch.decodes + sum(new for new, _ in batch.prefills))


def next_size(tokens: int) -> int:
    return next((size for size in SIZES if size >= tokens), tokens)


def skewed_profile() -> Profile:
    """With unequal batches whose excess is known, so that a spread matters."""
    rows = [
        {"prefill_chunk": chunk, "kv_prefill": 0, "n_decode": n, "n_long": 1, "kv_short": 100, "kv_long": long}
        | {"seconds": 1.0 + long / 4000, "equal_seconds": 1.0}
        for chunk in (0, 64)
        for n in (2, 8, 32)
        for long in (200, 800, 3200)
    ]
    profile = make_profile(overhead=True)
    profile.tables["skew"] = pl.DataFrame(rows)
    profile.grid["skew_model"] = "neighbours"
    return profile


@cache
def skewed(*, overlaps: bool = False, graphs: bool = False) -> StepLatency:
    return StepLatency(skewed_profile(), MODEL, host_overlaps=overlaps, graph_sizes=SIZES if graphs else ())


# CUDA graphs


@given(batches())
def test_tokenwise_kernels_compute_the_next_captured_size(batch: Batch) -> None:
    padded = next_size(tokens_of(batch))
    expected = own_kernels(MODEL, batch, padded)
    assert graphs().step(*batch) == pytest.approx(expected, rel=1e-9)


@cache
def graphs() -> StepLatency:
    return StepLatency(make_profile(), MODEL, graph_sizes=SIZES)


@settings(max_examples=25)
@given(st.integers(1, 60))
def test_between_captured_sizes_only_sequences_and_contexts_tell_steps_apart(decodes: int) -> None:
    eager = StepLatency(make_profile(), MODEL)
    added = graphs().step((), decodes, 100 * decodes) - eager.step((), decodes, 100 * decodes)
    wasted = next_size(decodes) - decodes
    assert added == pytest.approx(calls(MODEL, "dense") * (dense(wasted) - dense(0)), rel=1e-6, abs=1e-12)
    assert (added == 0.0) == (decodes in SIZES or decodes > SIZES[-1]), "eager above the largest"


def test_a_prefill_may_run_without_a_graph() -> None:
    decode_only = StepLatency(make_profile(), MODEL, graph_sizes=SIZES, graphs_decode_only=True)
    eager = StepLatency(make_profile(), MODEL)
    assert decode_only.step([(3, 0)], 2, 200) == eager.step([(3, 0)], 2, 200) < graphs().step([(3, 0)], 2, 200)
    assert decode_only.step((), 5, 500) == graphs().step((), 5, 500) > eager.step((), 5, 500)


# The host


@settings(max_examples=25)
@given(batches())
def test_the_host_is_added_or_hidden(batch: Batch) -> None:
    sequences = batch.decodes + len(batch.prefills)
    kernels, work = own_kernels(MODEL, batch), host(sequences, tokens_of(batch))
    profile = make_profile(overhead=True)
    added, hidden = (StepLatency(profile, MODEL, host_overlaps=overlaps) for overlaps in (False, True))
    assert added.step(*batch) == pytest.approx(kernels + work, rel=1e-9)
    assert hidden.step(*batch) == pytest.approx(max(kernels, work), rel=1e-9)


@settings(max_examples=25)
@given(batches(), st.sampled_from([0.0, 1e-5, 1e-3, 1.0]))
def test_a_given_overhead_is_the_least_that_a_step_takes_beside_it(batch: Batch, overhead: float) -> None:
    given = StepLatency(make_profile(), MODEL, host_overlaps=True, host_overhead=overhead)
    assert given.step(*batch) == pytest.approx(max(own_kernels(MODEL, batch), overhead), rel=1e-9)
    assert ("engine.host_overhead", overhead, "user") in [
        (one.name, one.value, one.source) for one in given.assumptions
    ]


# Runs of steps


@pytest.mark.parametrize("overlaps", [False, True])
@pytest.mark.parametrize("padded", [False, True])
@settings(max_examples=40)
@given(batch=batches(prefills=False), steps=st.integers(1, 60))
def test_decode_run_is_step_bit_for_bit(overlaps: bool, padded: bool, batch: Batch, steps: int) -> None:
    times = skewed(overlaps=overlaps, graphs=padded)
    run = times.decode_run(batch.decodes, batch.kv_tokens, steps, batch.spread)
    assert run.tolist() == [times.step(*shifted(batch, i)) for i in range(steps)]


def shifted(batch: Batch, steps: int) -> Batch:
    """So many steps later: every context has grown by one a step."""
    n, kv, spread = batch.decodes, batch.kv_tokens, batch.spread
    if spread is not None:
        spread = Spread(spread.squares + 2 * steps * kv + steps * steps * n, spread.longest + steps)
    return Batch((), n, kv + steps * n, spread)


@settings(max_examples=40)
@given(st.lists(batches(prefills=False, idle=True), min_size=1, max_size=3), st.integers(1, 40), st.booleans())
def test_group_decode_run_is_group_step_bit_for_bit(group: list[Batch], steps: int, overlaps: bool) -> None:
    times = skewed(overlaps=overlaps, graphs=True)
    run = times.group_decode_run(group, steps)
    assert run.shape == (steps,)
    one_by_one = [
        times.group_step([shifted(batch, i) if batch.decodes else batch for batch in group]) for i in range(steps)
    ]
    assert run.tolist() == one_by_one


def test_a_spread_takes_time() -> None:
    unequal, equal = Spread(100 * 100 + 3000 * 3000, 3000), Spread(2 * 1550 * 1550, 1550)
    for prefills in ((), [(64, 0)]):
        assert skewed().step(prefills, 2, 3100, unequal) > 1.05 * skewed().step(prefills, 2, 3100, equal)
        assert skewed().step(prefills, 2, 3100, equal) == pytest.approx(skewed().step(prefills, 2, 3100))
        off = StepLatency(skewed_profile(), MODEL, skew=False)
        assert off.step(prefills, 2, 3100, unequal) == off.step(prefills, 2, 3100)
    assert ("engine.skew", "user") in [(one.name, one.source) for one in off.assumptions]


# Engines in lock-step


@given(batches(), st.booleans())
def test_a_group_of_one_is_an_engine_on_its_own(batch: Batch, overlaps: bool) -> None:
    times = skewed(overlaps=overlaps, graphs=True)
    assert times.group_step([batch]) == pytest.approx(times.step(*batch), rel=1e-12)


@cache
def experts(ranks: int = 2, *, expert: bool = True, graph_sizes: tuple[int, ...] = ()) -> StepLatency:
    """Engines that share experts, of which nobody measured what they exchange."""
    parallelism = Parallelism(1, ranks, expert)
    return StepLatency(make_profile(EXPERTS), EXPERTS, parallelism=parallelism, graph_sizes=graph_sizes)


@given(st.lists(batches(idle=True), min_size=2, max_size=2))
def test_the_slowest_engine_sets_the_pace_and_experts_see_the_tokens_of_all(group: list[Batch]) -> None:
    own = [own_kernels(EXPERTS, batch) for batch in group]
    expected = max(own) + experts_seconds(EXPERTS, sum(tokens_of(batch) for batch in group), 2)
    assert experts().group_step(group) == pytest.approx(expected, rel=1e-9)


@given(batches(prefills=False))
def test_an_idle_engine_costs_one_token(batch: Batch) -> None:
    idle = Batch((), 0, 0)
    pair = experts().group_step([batch, idle])
    assert pair == experts().group_step([idle, batch])
    alone = own_kernels(EXPERTS, batch)
    assert pair == pytest.approx(alone + experts_seconds(EXPERTS, batch.decodes + 1, 2), rel=1e-9)


def test_engines_in_lock_step_replay_graphs_of_one_size() -> None:
    few, many = Batch((), 3, 300), Batch((), 13, 1300)
    padded = experts(graph_sizes=tuple(SIZES)).group_step([few, many])
    expected = own_kernels(EXPERTS, many, 16) + experts_seconds(EXPERTS, 2 * 16, 2)
    assert padded == pytest.approx(expected, rel=1e-9)
    eager = Batch((), 40, 4000)
    above = experts(graph_sizes=tuple(SIZES)).group_step([few, eager])
    assert above == pytest.approx(own_kernels(EXPERTS, eager) + experts_seconds(EXPERTS, 43, 2), rel=1e-9)


def test_experts_outside_their_grid_are_counted_with_a_prefill_and_without() -> None:
    fresh = StepLatency(make_profile(EXPERTS), EXPERTS)
    fresh.step([(5000, 0)], 0, 0)
    assert fresh.extrapolated["moe"] == 1
    fresh.decode_run(5000, 50_000, 7)
    fresh.step((), 5000, 50_000)
    assert fresh.extrapolated["moe"] == 9
    fresh.step((), 4, 400)
    assert fresh.extrapolated["moe"] == 9


@settings(max_examples=25)
@given(batches(prefills=False))
def test_experts_that_are_sliced_take_their_share_of_the_time(batch: Batch) -> None:
    sliced, whole = (StepLatency(make_profile(EXPERTS, 2), EXPERTS, 2, parallelism=Parallelism(2, 1, expert))
                     for expert in (False, True))  # fmt: skip
    own = own_kernels(EXPERTS, batch)
    tokens = batch.decodes
    assert sliced.step(*batch) == pytest.approx(own + experts_seconds(EXPERTS, tokens, 1) / 2, rel=1e-9)
    assert whole.step(*batch) == pytest.approx(own + experts_seconds(EXPERTS, tokens, 2), rel=1e-9)
    assert "kernel.moe" in [one.name for one in sliced.assumptions]
    assert "kernel.moe" not in [one.name for one in whole.assumptions]


# What ranks exchange


def with_links(model: Any, parallelism: Parallelism, links: Collectives) -> StepLatency:
    return StepLatency(
        make_profile(model, parallelism.tensor), model, parallelism=parallelism, collectives=links, graph_sizes=SIZES
    )


@settings(max_examples=25)
@given(batches())
def test_two_ranks_reduce_twice_a_layer_and_once_more_and_gather_logits(batch: Batch) -> None:
    hidden = next_size(tokens_of(batch)) * MODEL.hidden * MODEL.dtype_bytes
    logits = (batch.decodes + len(batch.prefills)) * MODEL.vocab // 2 * MODEL.dtype_bytes
    links = collectives(sorted({hidden, logits}))
    found = with_links(MODEL, Parallelism(2), links).step(*batch)
    kernels = own_kernels(MODEL, batch, next_size(tokens_of(batch)))
    exchange = (2 * MODEL.layers + 1) * law("all_reduce", hidden) + law("all_gather", logits)
    assert found == pytest.approx(kernels + exchange, rel=1e-9)


def test_two_engines_that_share_experts_gather_and_scatter() -> None:
    group = [Batch((), 8, 800), Batch((), 5, 500)]
    each = 8 * EXPERTS.dtype_bytes  # both replay the graph of eight
    sizes = sorted({each * EXPERTS.hidden, each * EXPERTS.experts, 2 * each * EXPERTS.hidden})
    found = with_links(EXPERTS, Parallelism(1, 2, True), collectives(sizes)).group_step(group)
    exchange = EXPERTS.layers * (
        law("all_gather", each * EXPERTS.hidden)
        + law("all_gather", each * EXPERTS.experts)
        + law("reduce_scatter", 2 * each * EXPERTS.hidden)
    )
    expected = own_kernels(EXPERTS, group[0], 8) + experts_seconds(EXPERTS, 16, 2) + exchange
    assert found == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("custom", "without", "chosen"),
    [
        (True, "", "all_reduce"),
        (False, "", "all_reduce_nccl"),
        (True, "all_reduce", "all_reduce_nccl"),
        (False, "all_reduce_nccl", "all_reduce"),
    ],
)
def test_the_all_reduce_is_the_engines_own_or_nccls(custom: bool, without: str, chosen: str) -> None:
    parallelism = Parallelism(2, custom_all_reduce=custom)
    times = with_links(MODEL, parallelism, collectives([512, 4096], without))
    assert ("engine.collectives", chosen) in [(one.name, one.value) for one in times.assumptions]


def test_collectives_that_nobody_measured_cost_nothing_and_are_stated() -> None:
    times = StepLatency(make_profile(MODEL, 2), MODEL, 2)
    assert times.step((), 4, 400) == pytest.approx(own_kernels(MODEL, Batch((), 4, 400)), rel=1e-9)
    stated = {one.name: one for one in times.assumptions}["engine.collectives"]
    assert (stated.value, stated.source) == (0.0, "assumed") and "nobody's" in stated.note
    alone = StepLatency(make_profile(), MODEL)
    assert "engine.collectives" not in [one.name for one in alone.assumptions]


def test_an_operation_that_was_not_measured_between_so_many_is_named() -> None:
    times = with_links(replace(MODEL), Parallelism(2), collectives([512, 4096], "all_gather"))
    with pytest.raises(
        UserError, match=r"made by the test: no all_gather between 2 ranks; measured are all_reduce × 2"
    ):
        times.step((), 4, 400)


def test_a_profiles_own_collectives_come_before_the_bundled() -> None:
    profile = replace(make_profile(MODEL, 2), device="H100")
    bundled = StepLatency(profile, MODEL, 2)
    rows = [(name, 2, size, 1.0) for name in ("all_reduce", "all_gather") for size in (256, 1 << 20)]
    profile.tables["collective"] = pl.DataFrame(rows, schema=["operation", "ranks", "bytes", "seconds"], orient="row")
    own = StepLatency(profile, MODEL, 2)
    assert own.step((), 4, 400) == pytest.approx(own_kernels(MODEL, Batch((), 4, 400)) + 2 * MODEL.layers + 2, rel=1e-9)
    assert 0 < bundled.step((), 4, 400) - own_kernels(MODEL, Batch((), 4, 400)) < 1e-3


def test_the_run_is_a_new_array_each_time() -> None:
    group = [Batch((), 4, 400), Batch((), 0, 0)]
    first = experts().group_decode_run(group, 5)
    kept = first.copy()
    first += 1.0
    assert np.array_equal(experts().group_decode_run(group, 5), kept)
