"""The step latency of a device whose law is known, measured nowhere but on its grid."""

from dataclasses import replace
from functools import cache

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibrate.attention_law import prefill_work
from calibrate.latency import StepLatency
from calibrate.model import ModelShape, load_model
from calibrate.profile import Profile, Provenance
from ground.errors import UserError

MODEL = load_model("tiny-llama")

# The law, in seconds: what one call of any layer costs. Linear, so that a table of few points knows it exactly.
TOKENS, SEQUENCES, CONTEXTS = [1, 7, 64, 512], [1, 5, 32], [0, 100, 1000]
CHUNKS, DECODES = [1, 50, 512], [1, 4, 32]


def dense(tokens: float) -> float:
    return 2e-6 + 3e-8 * tokens


def per_sequence(sequences: float) -> float:
    return 5e-6 + 1e-6 * sequences


def prefill(chunk: float, cached: float) -> float:
    return 4e-6 + 6e-10 * prefill_work(chunk, cached)


def decode(sequences: float, cached: float) -> float:
    return 3e-6 + 1e-7 * sequences + 2e-9 * sequences * cached


def host(sequences: float, tokens: float) -> float:
    return 1e-4 + 2e-6 * sequences + 1e-8 * tokens


def law(prefills: list[tuple[int, int]], decodes: int, kv_tokens: int) -> float:
    tokens, sequences = decodes + sum(new for new, _ in prefills), decodes + len(prefills)
    calls = {"dense": 0, "per_sequence": 0, "attention": 0}
    for call in MODEL.calls():
        calls[call.kernel_class] += call.calls
    attention = sum(prefill(*one) for one in prefills)
    if decodes:
        attention += decode(decodes, kv_tokens / decodes)
    return (
        calls["dense"] * dense(tokens)
        + calls["per_sequence"] * per_sequence(sequences)
        + calls["attention"] * attention
        + host(sequences, tokens)
    )


def make_profile() -> Profile:
    layers = {c: [call.layer for call in MODEL.calls() if call.kernel_class == c] for c in ("dense", "per_sequence")}
    attention = [(c, kv, 0, 0, prefill(c, kv)) for c in CHUNKS for kv in CONTEXTS]
    attention += [(0, 0, n, kv, decode(n, kv)) for n in DECODES for kv in CONTEXTS]
    names = ["prefill_chunk", "kv_prefill", "n_decode", "kv_decode", "seconds"]
    return Profile(
        name="made",
        device="made",
        model=MODEL,
        tp=1,
        dtype="float32",
        provenance=Provenance("measured", "made by the test", "none"),
        tables={
            "dense": pl.DataFrame(
                [{"layer": name, "tokens": n, "seconds": dense(n)} for name in layers["dense"] for n in TOKENS]
            ),
            "per_sequence": pl.DataFrame(
                [
                    {"layer": name, "sequences": n, "seconds": per_sequence(n)}
                    for name in layers["per_sequence"]
                    for n in SEQUENCES
                ]
            ),
            "attention": pl.DataFrame(attention, schema=names, orient="row"),
            "overhead": pl.DataFrame(
                [
                    {"sequences": n, "tokens": n + extra, "seconds": host(n, n + extra)}
                    for n in SEQUENCES
                    for extra in (0, 511)
                ]
            ),
        },
    )


@cache
def latency() -> StepLatency:
    return StepLatency(make_profile(), MODEL)


prefills_inside = st.lists(st.tuples(st.integers(1, 120), st.integers(0, 1000)), max_size=4)


@given(prefills_inside, st.integers(0, 28), st.floats(0, 1000))
def test_held_out_steps_follow_the_law(prefills: list[tuple[int, int]], decodes: int, context: float) -> None:
    if not prefills and not decodes:
        return
    kv_tokens = round(decodes * context)
    before = sum(latency().extrapolated.values())
    assert latency().step(prefills, decodes, kv_tokens) == pytest.approx(law(prefills, decodes, kv_tokens), rel=1e-9)
    assert sum(latency().extrapolated.values()) == before


@given(st.integers(1, 60), st.integers(0, 100_000), st.integers(1, 300))
def test_decode_run_is_step_bit_for_bit(decodes: int, kv_tokens: int, steps: int) -> None:
    run = latency().decode_run(decodes, kv_tokens, steps)
    assert run.shape == (steps,)
    assert run.tolist() == [latency().step((), decodes, kv_tokens + i * decodes) for i in range(steps)]


@settings(max_examples=30)
@given(st.integers(1, 60), st.integers(0, 60_000), st.integers(1, 50))
def test_decode_run_counts_what_steps_count(decodes: int, kv_tokens: int, steps: int) -> None:
    at_once, one_by_one = StepLatency(make_profile(), MODEL), StepLatency(make_profile(), MODEL)
    at_once.decode_run(decodes, kv_tokens, steps)
    for i in range(steps):
        one_by_one.step((), decodes, kv_tokens + i * decodes)
    assert at_once.extrapolated == one_by_one.extrapolated


def test_the_run_is_a_new_array_each_time() -> None:
    first = latency().decode_run(4, 400, 10)
    kept = first.copy()
    first += 1.0
    assert np.array_equal(latency().decode_run(4, 400, 10), kept)


@given(prefills_inside, st.integers(1, 28), st.integers(0, 20_000), st.integers(0, 5_000))
def test_more_context_never_takes_less_time(
    prefills: list[tuple[int, int]], decodes: int, kv_tokens: int, more: int
) -> None:
    assert latency().step(prefills, decodes, kv_tokens + more) >= latency().step(prefills, decodes, kv_tokens) - 1e-15


def test_outside_the_grid_it_goes_on_along_the_law_and_counts() -> None:
    fresh = StepLatency(make_profile(), MODEL)
    # Token-wise and attention laws go on; the host's overhead stays at its border.
    beyond = [(2000, 3000)]
    expected = law(beyond, 0, 0) - host(1, 2000) + host(1, 512)
    assert fresh.step(beyond, 0, 0) == pytest.approx(expected, rel=1e-9)
    assert fresh.extrapolated == {"attention": 1, "dense": 1}
    fresh.step((), 40, 40 * 500)
    assert fresh.extrapolated == {"attention": 2, "dense": 1, "per_sequence": 1}


def test_an_empty_step_takes_no_time() -> None:
    assert latency().step((), 0, 0) == 0.0


def test_missing_overhead_is_an_assumption() -> None:
    profile = make_profile()
    del profile.tables["overhead"]
    bare = StepLatency(profile, MODEL)
    assert [assumption.name for assumption in bare.assumptions] == ["profile", "engine.skew", "engine.host_overhead"]
    assert bare.step((), 3, 300) == pytest.approx(law([], 3, 300) - host(3, 3), rel=1e-9)
    assert [assumption.name for assumption in latency().assumptions] == ["profile", "engine.skew"]


def test_profile_of_another_model_names_both() -> None:
    with pytest.raises(UserError, match=r"tiny-llama.*Llama-3.1-8B.*hidden 256 and 4096"):
        StepLatency(make_profile(), load_model("Llama-3.1-8B"))
    with pytest.raises(UserError, match=r"tp = 1.*tp = 2"):
        StepLatency(make_profile(), MODEL, tp=2)


@pytest.mark.parametrize("kernel_class", ["dense", "per_sequence", "attention"])
def test_missing_kernel_class_names_profile_and_model(kernel_class: str) -> None:
    profile = make_profile()
    del profile.tables[kernel_class]
    with pytest.raises(UserError, match=f"profile made: no kernel class {kernel_class} for tiny-llama"):
        StepLatency(profile, MODEL)


def test_missing_rows_are_named() -> None:
    profile = make_profile()
    profile.tables["dense"] = profile.tables["dense"].filter(pl.col("layer") != "o_proj")
    with pytest.raises(UserError, match="no layer o_proj"):
        StepLatency(profile, MODEL)
    profile = make_profile()
    profile.tables["attention"] = profile.tables["attention"].filter(pl.col("n_decode") == 0)
    with pytest.raises(UserError, match="n_decode and kv_decode"):
        StepLatency(profile, MODEL)


def test_mixture_of_experts_needs_its_own_class() -> None:
    experts: ModelShape = replace(MODEL, experts=8, experts_per_token=2, moe_intermediate=64)
    profile = replace(make_profile(), model=experts)
    with pytest.raises(UserError, match="no kernel class moe"):
        StepLatency(profile, experts)
