"""What the OpenVINO benchmark stands on: the model's file, and the profile made of lone steps."""

import struct
from dataclasses import replace

import numpy as np
import pytest
from benchmark_modules import load
from hypothesis import given
from hypothesis import strategies as st

from calibrate.latency import StepLatency
from calibrate.model import ModelShape
from calibrate.profile import Profile
from ground.errors import UserError

MODEL = ModelShape("small", 32, 2, 4, 2, 8, 48, 97, max_context=256)
lone_steps = load("lone_steps")


# The file of the model.


class Reader:
    """Reads a GGUF file by its published format, and nothing more than is written here."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0
        assert self.take("4sI") == (b"GGUF", 3)
        tensors, keys = self.take("QQ")
        self.metadata = {self.text(): self.value(*self.take("I")) for _ in range(keys)}
        self.tensors = {}
        headers = []
        for _ in range(tensors):
            name, (dimensions,) = self.text(), self.take("I")
            shape = self.take(f"{dimensions}Q")[::-1]
            headers.append((name, shape, *self.take("IQ")))
        start = -(-self.at // 32) * 32
        for name, shape, kind, offset in headers:
            assert offset % 32 == 0
            kinds = {0: np.dtype("<f4"), 1: np.dtype("<f2")}
            self.tensors[name] = np.frombuffer(data, kinds[kind], int(np.prod(shape)), start + offset).reshape(shape)

    def take(self, kinds: str) -> tuple:
        values = struct.unpack_from("<" + kinds, self.data, self.at)
        self.at += struct.calcsize("<" + kinds)
        return values

    def text(self) -> str:
        (length,) = self.take("Q")
        self.at += length
        return self.data[self.at - length : self.at].decode()

    def value(self, kind: int):
        if kind == 9:
            inner, count = self.take("IQ")
            return [self.value(inner) for _ in range(count)]
        return self.text() if kind == 8 else self.take({4: "I", 5: "i", 6: "f"}[kind])[0]


@pytest.mark.parametrize("tied", [False, True])
def test_the_file_holds_the_models_shape_and_weights(tmp_path, tied):
    model = replace(MODEL, tied_embeddings=tied)
    load("gguf_file").write_gguf(tmp_path / "m.gguf", model, seed=1)
    file = Reader((tmp_path / "m.gguf").read_bytes())
    assert file.metadata["general.architecture"] == "llama"
    assert file.metadata["llama.block_count"] == 2
    assert file.metadata["llama.attention.head_count_kv"] == 2
    assert file.metadata["llama.rope.freq_base"] == 10000.0
    assert len(file.metadata["tokenizer.ggml.tokens"]) == len(file.metadata["tokenizer.ggml.token_type"]) == 97
    assert 2 * sum(tensor.size for tensor in file.tensors.values()) == model.weight_bytes()  # both of two bytes each
    assert file.tensors["blk.1.attn_k.weight"].shape == (16, 32)
    assert file.tensors["blk.1.ffn_down.weight"].shape == (32, 48)
    assert ("output.weight" in file.tensors) == (not tied)
    for name, tensor in file.tensors.items():
        if tensor.ndim == 1:
            assert (tensor == 1).all(), name
        else:
            assert np.var(tensor.astype(float)) == pytest.approx(1 / tensor.shape[1], rel=0.25), name
    q, up = file.tensors["blk.0.ffn_gate.weight"], file.tensors["blk.0.ffn_up.weight"]
    assert not np.array_equal(q, up)


def test_the_file_takes_only_what_it_can_say(tmp_path):
    with pytest.raises(UserError, match="expected a dense Llama"):
        load("gguf_file").write_gguf(tmp_path / "m.gguf", replace(MODEL, qk_norm=True))
    with pytest.raises(UserError, match="cannot be written"):
        load("gguf_file").write_gguf(tmp_path / "no" / "m.gguf", MODEL)


# The profile of lone steps.

parts = st.floats(1e-6, 1e-3)


def latency_of(prefills, decodes, tmp_path_factory=None) -> StepLatency:
    profile = lone_steps.LoneSteps(prefills, decodes).profile(MODEL, name="t", device="t", versions={}, threads=1)
    return StepLatency(profile, MODEL)


@given(st.floats(1e-4, 1e-2), parts, st.floats(1e-9, 1e-5), st.floats(1e-9, 1e-5))
def test_steps_that_follow_the_law_are_met_alone_and_together(fixed, token, pair, cached):
    """One law for all steps: by tokens, by the query-key pairs of each prompt, by the cached tokens of the decodes."""

    def law(prefills, contexts):
        tokens = sum(n for n, _ in prefills) + len(contexts)
        return (
            fixed + token * tokens + pair * sum(n * k + n * (n + 1) / 2 for n, k in prefills) + cached * sum(contexts)
        )

    prefills = {n: law([(n, 0)], []) for n in (16, 64, 100, 256)}
    decodes = {(b, c): law([], [c] * b) for b in (1, 2, 8) for c in (10.0, 50.5, 200.0)}
    latency = latency_of(prefills, decodes)
    asked = [
        ([(64, 0)], []),
        ([(100, 0), (64, 0)], []),
        ([(64, 36)], []),
        ([(100, 0)], [40, 60]),
        ([], [10, 91, 100, 7]),
        ([], [200] * 8),
    ]
    for chunks, contexts in asked:
        expected = law(chunks, contexts)
        assert latency.step(chunks, len(contexts), sum(contexts)) == pytest.approx(expected, rel=1e-6)
    whole = latency.step([(100, 0)], 0, 0)
    halves = latency.step([(64, 0)], 0, 0) + latency.step([(36, 64)], 0, 0)
    assert halves - whole == pytest.approx(fixed, rel=1e-3)  # the pairs are the same, a step more is paid


seconds = st.floats(1e-4, 1e-1)


@given(st.lists(seconds, min_size=4, max_size=4), st.lists(seconds, min_size=6, max_size=6))
def test_any_measured_steps_are_given_back(prefills, decodes):
    """However disturbed the measurement: prompts exactly, decode batches exactly, and no negative kernel."""
    measured = dict(zip((16, 64, 128, 256), prefills, strict=True))
    batches = dict(zip([(b, float(c)) for b in (1, 8) for c in (10, 100, 200)], decodes, strict=True))
    steps = lone_steps.LoneSteps(measured, batches)
    profile = steps.profile(MODEL, name="t", device="t", versions={}, threads=1)
    latency = StepLatency(profile, MODEL)
    for n, expected in measured.items():
        assert latency.step([(n, 0)], 0, 0) == pytest.approx(expected, rel=1e-6)
    for (b, c), expected in batches.items():
        assert latency.step([], b, round(b * c)) == pytest.approx(expected, rel=1e-6)
    for table in profile.tables.values():
        assert table["seconds"].min() >= 0


def test_the_profile_can_be_kept(tmp_path):
    steps = lone_steps.LoneSteps({16: 0.01, 64: 0.02, 256: 0.09}, {(1, 10.0): 0.001, (4, 10.5): 0.002})
    profile = steps.profile(MODEL, name="t", device="t", versions={"x": "1"}, threads=1)
    profile.save(tmp_path / "p")
    assert StepLatency(Profile.load(tmp_path / "p"), MODEL).step([(64, 0)], 0, 0) == pytest.approx(0.02)
