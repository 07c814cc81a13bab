"""What unequal contexts cost the reference engine's decode kernel."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibrate.kernels.gpu.splits import splits_on
from calibrate.latency import StepLatency
from calibrate.paged_waves import PagedWaves
from calibrate.profile import Profile
from calibrate.skew import Spread

WAVES = PagedWaves(kv_heads=8, multiprocessors=132, block_rate=5e7, total_rate=6e9, launch=1e-5)
BATCHES = st.lists(st.integers(1, 16_000), min_size=2, max_size=130)


@settings(max_examples=50)
@given(st.integers(1, 130), st.integers(1, 16_000))
def test_equal_contexts_cost_nothing(sequences: int, context: int) -> None:
    assert WAVES.excess(np.full(sequences, float(context))) == pytest.approx(0.0, abs=1e-12)


@settings(max_examples=50)
@given(BATCHES)
def test_never_faster_than_equal_and_never_slower_than_the_longest_after_all_else(batch: list[int]) -> None:
    contexts = np.array(batch, dtype=float)
    excess = WAVES.excess(contexts)
    parts = splits_on(len(batch), WAVES.kv_heads, WAVES.multiprocessors)
    shared = WAVES.kv_heads * contexts.sum() / WAVES.total_rate
    equal = max(shared, contexts.mean() / parts / WAVES.block_rate)
    longest = contexts.max() / parts / WAVES.block_rate
    assert 0.0 <= excess <= (shared + longest) / (WAVES.launch + equal) + 1e-9


@settings(max_examples=50)
@given(BATCHES, st.integers(1, 10_000))
def test_a_longer_straggler_costs_more(batch: list[int], more: int) -> None:
    """Against a mean that is held: the batch grows at one end and shrinks at the other."""
    contexts = np.sort(np.array(batch, dtype=float))
    longer = contexts.copy()
    taken = min(float(more), contexts[0] - 1.0)
    longer[-1] += taken
    longer[0] -= taken
    assert WAVES.excess(longer) >= WAVES.excess(contexts) - 1e-9


def test_one_long_context_among_many_short_ones_ends_by_its_own_speed() -> None:
    contexts = np.array([100.0] * 63 + [10_000.0])
    seconds = 10_000 / WAVES.block_rate  # uncut: there are programs enough
    equal = WAVES.kv_heads * contexts.sum() / WAVES.total_rate
    assert splits_on(64, 8, 132) == 1
    assert WAVES.excess(contexts) == pytest.approx((seconds - equal) / (WAVES.launch + equal), rel=0.1)


def test_the_h100_profile_charges_unequal_decodes_alone_and_beside_a_prefill() -> None:
    profile = Profile.load("h100-sxm-80gb")
    times = StepLatency(profile, profile.shape, graph_sizes=[48, 64], graphs_decode_only=True)
    assert times.asks_spread
    assert ("engine.skew", "measured") in [(one.name, one.source) for one in times.assumptions]
    kv_tokens, decodes = 40 * 800, 40
    equal, unequal = Spread(40 * 800**2, 800), Spread(39 * 720**2 + 3920**2, 3920)
    for prefills in ([], [(300, 0)]):
        alone = times.step(prefills, decodes, kv_tokens, equal)
        assert times.step(prefills, decodes, kv_tokens, unequal) > alone + 0.5e-3
        assert alone == pytest.approx(times.step(prefills, decodes, kv_tokens), rel=1e-9)
