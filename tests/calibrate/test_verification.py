"""A step that verifies drafts takes what its tokens, samples and attention take, and drafting what a model takes."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from known_profile import (
    CHUNKS,
    MODEL,
    PREFIXES,
    attention,
    calls,
    decode,
    dense,
    host,
    make_profile,
    per_sequence,
    prefill,
)

from calibrate.attention_law import prefill_work
from calibrate.verification import VerifyLatency

Work = Sequence[tuple[int, int]]

GPU = VerifyLatency(make_profile(overhead=True), MODEL, tokens=4, lookup_seconds=1e-3, skew=False)
CPU_PROFILE = replace(make_profile(mixed=False, overhead=True), threads=1)
CPU = VerifyLatency(CPU_PROFILE, MODEL, tokens=4, skew=False)

prefills = st.lists(st.tuples(st.integers(16, 200), st.integers(0, 500)), max_size=3)
verified = st.lists(st.tuples(st.integers(1, 6), st.integers(1, 900)), min_size=1, max_size=12)


def beside_attention(prefills: Work, verified: Work) -> float:
    """Everything but attention, in seconds."""
    sequences = len(prefills) + len(verified)
    tokens = sum(new for new, _ in [*prefills, *verified])
    sampled = len(prefills) + sum(new for new, _ in verified)
    tokenwise = calls(MODEL, "dense") * dense(tokens) + calls(MODEL, "per_sequence") * per_sequence(sampled)
    return tokenwise + host(sequences, tokens)


@given(prefills, st.lists(st.integers(0, 900), min_size=1, max_size=12))
def test_without_drafts_it_is_a_plain_step(prefills: Work, contexts: list[int]) -> None:
    for latency in (GPU, CPU):
        found = latency.verify(prefills, [(1, context) for context in contexts])
        assert found == latency.step(prefills, len(contexts), sum(contexts))


@given(prefills, verified, st.integers(0, 11))
def test_a_gpu_reads_keys_once_and_computes_every_pair(prefills: Work, verified: Work, which: int) -> None:
    verified = [*verified, (3, 70)]  # somebody drafts
    rate = prefill(CHUNKS[-1], PREFIXES[-1]) / prefill_work(CHUNKS[-1], PREFIXES[-1])
    pairs = sum(prefill_work(new, cached) - prefill_work(1, cached) for new, cached in verified)
    reading = attention(prefills, len(verified), sum(cached for _, cached in verified))
    expected = beside_attention(prefills, verified) + MODEL.layers * (reading + rate * pairs)
    assert GPU.verify(prefills, verified) == pytest.approx(expected, rel=1e-9)
    index = which % len(verified)
    more = [(new + (at == index), cached) for at, (new, cached) in enumerate(verified)]
    assert GPU.verify(prefills, more) > GPU.verify(prefills, verified)


@given(prefills, verified)
def test_on_a_cpu_each_sequence_that_verifies_is_a_prompt_of_its_own(prefills: Work, verified: Work) -> None:
    verified = [*verified, (3, 70)]
    single = [cached for new, cached in verified if new == 1]
    spans = [one for one in [*prefills, *verified[:]] if one in prefills or one[0] > 1]
    seconds = sum(prefill(*one) for one in spans) + (decode(len(single), sum(single) / len(single)) if single else 0.0)
    expected = beside_attention(prefills, verified) + MODEL.layers * seconds
    assert CPU.verify(prefills, verified) == pytest.approx(expected, rel=1e-9)


def test_a_gpu_is_one_though_its_profile_says_how_many_threads_the_host_had() -> None:
    profile = replace(make_profile(overhead=True), threads=1, device_memory=80 * 2**30)
    latency = VerifyLatency(profile, MODEL, tokens=4, skew=False)
    assert latency.verify([(64, 0)], [(3, 70), (1, 90)]) == GPU.verify([(64, 0)], [(3, 70), (1, 90)])


def test_a_lookup_takes_its_seconds_a_sequence() -> None:
    assert GPU.drafting([], [(5, 100)] * 3, 3, 315) == pytest.approx(3e-3)


@settings(max_examples=30)
@given(prefills, verified, st.integers(1, 6))
def test_a_draft_model_computes_what_the_step_did_and_then_token_by_token(
    prefills: Work, verified: Work, tokens: int
) -> None:
    draft = VerifyLatency(make_profile(overhead=True), MODEL, tokens=tokens, skew=False)
    latency = VerifyLatency(make_profile(overhead=True), MODEL, tokens=tokens, draft=draft, skew=False)
    sequences, kv_tokens = len(verified), sum(new + cached for new, cached in verified)
    expected = draft.verify(prefills, verified)
    for further in range(tokens - 1):
        expected += draft.step([], sequences, kv_tokens + further * sequences)
    assert latency.drafting(prefills, verified, sequences, kv_tokens) == pytest.approx(expected, rel=1e-12)


def test_what_the_draft_model_asks_outside_its_grid_is_counted() -> None:
    draft = VerifyLatency(make_profile(), MODEL, tokens=3, skew=False)
    latency = VerifyLatency(make_profile(), MODEL, tokens=3, draft=draft, skew=False)
    latency.drafting([], [(4, 5000)], 1, 5004)
    assert latency.extrapolated["attention"] > 0
