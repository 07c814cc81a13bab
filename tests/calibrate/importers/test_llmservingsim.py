"""LLMServingSim's profiles, hand-written: units, what is taken from where, which model and which degree."""

from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from llmservingsim_folders import (
    DENSE,
    EXPERTS_CONFIG,
    META,
    TOKENS,
    attention_us,
    dense_us,
    layer,
    write_csv,
    write_model,
    write_tp,
    write_variant,
)

from calibrate.importers.llmservingsim import IMPORTER, read
from calibrate.latency import StepLatency
from calibrate.model import load_model
from ground.errors import UserError


@pytest.fixture
def variant(tmp_path: Path) -> Path:
    return write_variant(tmp_path)


def test_it_is_registered_under_its_name() -> None:
    assert IMPORTER.name == "llmservingsim" and IMPORTER.read is read


def test_microseconds_become_seconds(variant: Path) -> None:
    profile = read(str(variant), None, None)
    for name in (*DENSE, "final_layernorm"):
        expected = {n: dense_us(name, n, 1) / 1e6 for n in TOKENS}
        assert layer(profile.tables["dense"], name) == pytest.approx(expected)
    for name in ("lm_head", "sampler"):
        expected = {n: (10.0 + n) / 1e6 for n in (1, 8, 64)}
        assert layer(profile.tables["per_sequence"], name) == pytest.approx(expected)
    for *point, seconds in profile.tables["attention"].iter_rows():
        assert seconds == pytest.approx(attention_us(*point) / 1e6)


@settings(max_examples=20)
@given(st.lists(st.floats(0.0, 1e6), min_size=1, max_size=5))
def test_a_point_timed_more_than_once_is_the_median(
    tmp_path_factory: pytest.TempPathFactory, times: list[float]
) -> None:
    variant = write_variant(tmp_path_factory.mktemp("many"))
    path = variant / "tp1" / "per_sequence.csv"
    rows = [("lm_head", 4, time) for time in times] + [("sampler", 4, 1.0)]
    write_csv(path, "layer,sequences,time_us", rows)
    found = layer(read(str(variant), None, None).tables["per_sequence"], "lm_head")
    assert found == {4: pytest.approx(float(pl.Series(times).median()) / 1e6)}  # type: ignore[arg-type]


def test_who_measured_what_on_what(variant: Path) -> None:
    profile = read(str(variant), None, None)
    assert profile.provenance.source == "imported"
    assert profile.provenance.licence == "MIT (c) 2024 CASYS Lab at KAIST"
    assert "LLMServingSim" in profile.provenance.note
    assert (profile.device, profile.device_memory) == ("NVIDIA GeForce RTX 4090", 25250627584)
    assert profile.versions == {"vllm": "0.19.0", "cuda": "12.8", "profiler": "1.0.0"}
    assert (profile.date, profile.block_size, profile.dtype) == ("2026-08-17", 32, "bfloat16")
    assert profile.grid["attention"] == {"max_kv": 1024}
    assert (profile.name, profile.tp) == ("RTX4090 Small tp1", 1)


def test_a_folder_without_meta_is_of_no_known_gpu(variant: Path) -> None:
    (variant / "meta.yaml").unlink()
    profile = read(str(variant), load_model("tiny-llama"), None)
    assert profile.device == "unknown GPU" and profile.device_memory is None


def test_a_step_can_be_asked_of_it(variant: Path) -> None:
    profile = read(str(variant), None, None)
    times = StepLatency(profile, profile.shape)
    assert 0 < times.step((), 4, 1000) < times.step([(256, 0)], 4, 1000) < 1e-3


# Which model


def test_the_model_is_the_file_beside_the_profiles(variant: Path) -> None:
    model = read(str(variant), None, None).shape
    assert (model.name, model.hidden, model.layers) == ("Small", 64, 2)


def test_or_a_bundled_one_or_the_given_one(variant: Path, tmp_path: Path) -> None:
    write_model(tmp_path).unlink()
    (variant / "meta.yaml").write_text(yaml.safe_dump(META | {"model": "meta-llama/Llama-3.1-8B"}))
    assert read(str(variant), None, None).model == load_model("Llama-3.1-8B")
    given = replace(load_model("tiny-llama"), name="given")
    assert read(str(variant), given, None).model == given
    (variant / "meta.yaml").write_text(yaml.safe_dump(META))
    with pytest.raises(UserError, match=r"is of model made/Small, which is not bundled; give its config.json by --mod"):
        read(str(variant), None, None)


# Which tensor parallelism


def test_tp_is_chosen_by_number_or_by_folder(tmp_path: Path) -> None:
    variant = write_variant(tmp_path, degrees=(1, 2))
    for source, tp in ((variant, 2), (variant / "tp2", None), (variant / "tp2", 2)):
        profile = read(str(source), None, tp)
        assert profile.tp == 2
        assert layer(profile.tables["dense"], "o_proj")[128] == pytest.approx(dense_us("o_proj", 128, 2) / 1e6)
    for tp in (None, 4):
        with pytest.raises(UserError, match=r"bf16: has tp1, tp2; choose one by --tp"):
            read(str(variant), None, tp)
    with pytest.raises(UserError, match=r"tp2: is not of tp = 1; expected a folder tp1"):
        read(str(variant / "tp2"), None, 1)


# Experts


@pytest.fixture
def experts(tmp_path: Path) -> Path:
    variant = write_variant(tmp_path, degrees=(1, 2))
    write_model(tmp_path, EXPERTS_CONFIG)
    for tp in (1, 2):
        write_tp(variant / f"tp{tp}", tp, layers=(*DENSE[:5], "qk_norm"))
    rows = [(n, reached, 5.0 + n + reached) for n in (1, 64, 2048) for reached in (1, 8)]
    write_csv(variant / "tp1" / "moe.csv", "tokens,activated_experts,time_us", rows)
    return variant


def test_experts_are_those_timed_beside_tp1(experts: Path) -> None:
    one, two = (read(str(experts), None, tp) for tp in (1, 2))
    assert one.tables["moe"].equals(two.tables["moe"])
    expected = {(n, reached): (5.0 + n + reached) / 1e6 for n in (1, 64, 2048) for reached in (1, 8)}
    assert {(n, reached): seconds for n, reached, seconds in one.tables["moe"].rows()} == pytest.approx(expected)
    assert StepLatency(one, one.shape).step((), 4, 400) > 0


def test_its_own_come_first_and_none_is_an_error(experts: Path) -> None:
    write_csv(experts / "tp2" / "moe.csv", "tokens,activated_experts,time_us", [(1, 1, 7.0)])
    assert read(str(experts), None, 2).tables["moe"].rows() == [(1, 1, pytest.approx(7e-6))]
    (experts / "tp1" / "moe.csv").unlink()
    with pytest.raises(UserError, match=r"tp1/moe.csv: no such file"):
        read(str(experts), None, 1)


def test_a_dense_model_has_no_experts(variant: Path) -> None:
    write_csv(variant / "tp1" / "moe.csv", "tokens,activated_experts,time_us", [(1, 1, 7.0)])
    assert "moe" not in read(str(variant), None, None).tables
