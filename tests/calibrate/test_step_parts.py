"""The parts of steps: together they are the step, whatever runs in it."""

import numpy as np
import pytest
from diagnosis_runs import step_latency
from hypothesis import given, settings
from hypothesis import strategies as st
from known_profile import EXPERTS, calls, dense, per_sequence

from calibrate.curve import Curve
from calibrate.step_parts import StepParts, StepRows, step_parts, sum_along
from sim.engine.config import EngineConfig

SIZES = (1, 2, 4, 8, 16, 32)
rises = st.lists(st.floats(0.1, 50.0), min_size=1, max_size=6)


def rows(*batches: tuple[int, int, int, int, int]) -> StepRows:
    """Each (steps, prefill sequences, prefill tokens, decodes, cached tokens)."""
    return StepRows(*(np.array(column) for column in zip(*batches, strict=True)))


def total(parts: StepParts) -> np.ndarray:
    return sum((getattr(parts, name) for name in StepParts.__dataclass_fields__), np.zeros(len(parts.host)))


@given(rises, st.floats(-20.0, 50.0), st.lists(st.tuples(st.integers(0, 300), st.integers(1, 200))), st.integers(1, 20))
def test_a_sum_along_a_curve_is_the_plain_sum(
    gaps: list[float], first: float, asked: list[tuple[int, int]], stride: int
) -> None:
    xs = np.cumsum([first, *gaps])
    curve = Curve(xs.tolist(), [float(7 + (3 * i) % 5) for i in range(len(xs))])
    begins, steps = (np.array([one[i] for one in asked], dtype=np.int64) for i in (0, 1))
    found = sum_along(curve, begins, stride, steps)
    for value, begin, count in zip(found, begins, steps, strict=True):
        points = [curve(float(begin + i * stride)) for i in range(count)]
        assert value == pytest.approx(sum(points), rel=1e-9, abs=1e-9 * sum(map(abs, points)))


batches = st.tuples(st.integers(1, 300), st.integers(1, 40), st.integers(0, 90_000))  # steps, decodes, cached tokens


@settings(max_examples=60)
@given(st.lists(batches, min_size=1, max_size=8), st.booleans(), st.sampled_from([(), SIZES]), st.sampled_from([1, 2]))
def test_decode_steps_sum_to_their_law(
    asked: list[tuple[int, int, int]], overhead: bool, graphs: tuple[int, ...], ranks: int
) -> None:
    times = step_latency(overhead=overhead, graphs=graphs, ranks=ranks)
    before = times.extrapolated.copy()
    parts = step_parts(times, rows(*((steps, 0, 0, decodes, kv) for steps, decodes, kv in asked)))
    assert times.extrapolated == before
    expected = [times.decode_run(decodes, kv, steps).sum() for steps, decodes, kv in asked]
    assert total(parts) == pytest.approx(expected, rel=1e-9)
    assert not parts.prefill_weights.any() and not parts.prefill_attention.any()
    assert (parts.communication > 0).all() == (ranks > 1)


@settings(max_examples=60)
@given(
    st.integers(1, 3), st.integers(1, 200), st.integers(0, 20), st.integers(0, 20_000), st.sampled_from([(), SIZES]),
    st.sampled_from([1, 2]),
)  # fmt: skip
def test_equal_fresh_prompts_sum_to_their_step(
    prompts: int, tokens: int, decodes: int, kv_tokens: int, graphs: tuple[int, ...], ranks: int
) -> None:
    times = step_latency(overhead=True, graphs=graphs, ranks=ranks)
    kv_tokens = kv_tokens if decodes else 0
    parts = step_parts(times, rows((1, prompts, prompts * tokens, decodes, kv_tokens)))
    expected = times.step([(tokens, 0)] * prompts, decodes, kv_tokens)
    assert total(parts)[0] == pytest.approx(expected, rel=1e-9)


def test_weights_are_shared_by_tokens_and_sequences() -> None:
    times = step_latency()
    model = times.model
    parts = step_parts(times, rows((1, 1, 48, 16, 900)))
    by_tokens = calls(model, "dense") * dense(64)
    by_sequences = calls(model, "per_sequence") * per_sequence(17)
    assert parts.decode_weights[0] == pytest.approx(by_tokens * 16 / 64 + by_sequences * 16 / 17)
    assert parts.prefill_weights[0] == pytest.approx(by_tokens * 48 / 64 + by_sequences / 17)


def test_nothing_takes_no_time() -> None:
    assert total(step_parts(step_latency(overhead=True), rows((1, 0, 0, 0, 0))))[0] == 0.0


def test_engines_in_lock_step_share_a_row_evenly() -> None:
    config = EngineConfig(kv_blocks=100, data_parallel=2)
    times = step_latency(config, experts=True)
    parts = step_parts(times, rows((3, 0, 0, 16, 800)))
    own = calls(EXPERTS, "dense") * dense(8) + calls(EXPERTS, "per_sequence") * per_sequence(8)
    assert times.experts is not None
    assert parts.decode_weights[0] == pytest.approx(3 * (own + times.experts(16)), rel=1e-9)
    assert parts.communication[0] > 0
