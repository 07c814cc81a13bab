"""Weights streamed from host memory: the pipeline of copies and layers step by step, and the memory it leaves."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibrate.datasheet import datasheet_profile
from calibrate.latency import StepLatency
from calibrate.model import load_model
from calibrate.streamed_latency import StreamedLatency, freed_bytes, layer_bytes

MODEL = load_model("Llama-3.1-8B")
PROFILE = datasheet_profile("h100-sxm-80gb", MODEL, 1)


def pipeline(layers: int, streamed: int, compute: float, copy: float, steps: int) -> list[float]:
    """Ends of steps in a row: a layer computes when the one before it has and its weights are there; a copy begins when
    the one before it has ended, and the layer streamed before the last has computed (two buffers)."""
    where = {round((i + 1) * layers / streamed) - 1 for i in range(streamed)}
    copied = done = 0.0
    computed: list[float] = []  # ends of layers that are streamed
    ends = []
    for _ in range(steps):
        for layer in range(layers):
            if layer in where:
                buffer_free = computed[-2] if len(computed) > 1 else 0.0
                copied = max(copied, buffer_free) + copy
                done = max(done, copied) + compute
                computed.append(done)
            else:
                done += compute
        ends.append(done)
    return ends


@settings(max_examples=200, deadline=None)
@given(st.sampled_from([(8, 1), (8, 2), (8, 4), (8, 8), (32, 4), (12, 3)]), st.floats(0.1, 2.0), st.floats(0.05, 20.0))
def test_steps_in_a_row_take_the_longer_of_computing_and_copying(
    sizes: tuple[int, int], compute: float, copy: float
) -> None:
    layers, streamed = sizes
    durations = np.diff(pipeline(layers, streamed, compute, copy, steps=400))
    assert np.mean(durations[200:]) == pytest.approx(max(layers * compute, streamed * copy), rel=0.01)


@pytest.mark.parametrize("layers", [1, 8, 32])
def test_a_step_takes_its_kernels_or_its_copies(layers: int) -> None:
    plain = StepLatency(PROFILE, MODEL)
    streamed = StreamedLatency(PROFILE, MODEL, layers=layers, host_bandwidth=50e9)
    copies = layers * layer_bytes(MODEL, 1) / 50e9
    assert streamed.stream_seconds == pytest.approx(copies)
    for prefills, decodes, kv in (([], 1, 100), ([], 200, 300_000), ([(2048, 0)], 0, 0), ([(512, 4096)], 20, 9000)):
        alone = plain.step(prefills, decodes, kv)
        assert streamed.step(prefills, decodes, kv) == pytest.approx(max(alone, copies))
        if not prefills:
            run = streamed.decode_run(decodes, kv, 5)
            assert run.tolist() == [streamed.step([], decodes, kv + i * decodes) for i in range(5)]
            law = streamed.decode_law(decodes)
            assert law is None or law.seconds(kv) == run[0]
    assert streamed.step([], 0, 0) == 0.0


def test_a_layer_is_what_one_layer_more_weighs() -> None:
    assert layer_bytes(MODEL, 1) == 2 * (4096 * (4096 + 2 * 1024 + 4096) + 3 * 4096 * 14336 + 2 * 4096)
    assert freed_bytes(MODEL, 1, 10) == 8 * layer_bytes(MODEL, 1)  # two buffers stay
    assert freed_bytes(MODEL, 1, 1) == 0
