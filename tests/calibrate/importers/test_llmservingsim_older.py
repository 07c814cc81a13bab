"""LLMServingSim's older form, hand-written: unfused parts, all keys of a call, and refusals in one line."""

from pathlib import Path

import pytest
from llmservingsim_folders import CONFIG, OLDER, layer, older_ns, spoil, write_model, write_older

from calibrate.importers.llmservingsim import read
from calibrate.latency import StepLatency
from calibrate.model import load_model
from ground.errors import UserError


@pytest.fixture
def older(tmp_path: Path) -> Path:
    (tmp_path / "h100-70b").mkdir()
    write_model(tmp_path / "h100-70b", name="x").rename(tmp_path / "h100-70b" / "model.json")
    return write_older(tmp_path / "h100-70b" / "profile")


def test_nanoseconds_become_seconds_and_unfused_parts_are_summed(older: Path) -> None:
    dense = read(str(older), None, None).tables["dense"]
    for name, parts in {
        "embedding": ["embedding"],
        "qkv_proj": ["q_proj", "k_proj", "v_proj"],
        "rotary_emb": ["rope"],
        "o_proj": ["o_proj"],
        "gate_up_proj": ["gate_proj", "up_proj"],
        "act_fn": ["act_fn"],
        "down_proj": ["down_proj"],
        "final_layernorm": ["final_layernorm"],
    }.items():
        expected = {n: sum(older_ns(part, n) // 4 for part in parts) / 1e9 for n in (1, 64, 512)}
        assert layer(dense, name) == pytest.approx(expected), name


def test_the_two_norms_of_a_layer_are_one_called_twice(older: Path) -> None:
    dense = read(str(older), None, None).tables["dense"]
    both = {n: sum(older_ns(f"{name}_layernorm", n) // 4 for name in ("input", "post")) / 1e9 for n in (1, 64, 512)}
    assert {n: 2 * seconds for n, seconds in layer(dense, "layernorm").items()} == pytest.approx(both)


def test_attention_counts_all_keys_of_a_call(older: Path) -> None:
    """Milliseconds. A chunk's own keys are not cached before it; a batch's are shared out, less the new one."""
    found = {row[:4]: row[4] for row in read(str(older), None, None).tables["attention"].rows()}
    expected = {(64, 0, 0, 0): 1e-4, (64, 512, 0, 0): 1e-4, (512, 0, 0, 0): 2e-4, (512, 512, 0, 0): 2e-4}
    expected |= {(0, 0, n, context - 1): n * 1e-5 for n in (1, 8) for context in (64, 512)}
    assert found == pytest.approx(expected)


def test_the_device_is_that_of_the_folder_above_and_the_sampler_is_stated(older: Path) -> None:
    profile = read(str(older), None, None)
    assert (profile.device, profile.tp, profile.device_memory) == ("H100", 4, 85029158912)
    assert profile.shape.hidden == CONFIG["hidden_size"]
    assert profile.grid["assumed"] == {"sampler": "was not timed: taken to cost nothing"}
    assert set(layer(profile.tables["per_sequence"], "sampler").values()) == {0.0}
    assert layer(profile.tables["per_sequence"], "lm_head")[64] == pytest.approx(older_ns("lm_head", 64) // 4 / 1e9)
    times = StepLatency(profile, profile.shape, 4)
    assert "kernel.sampler" in [one.name for one in times.assumptions] and times.step((), 2, 200) > 0


def test_the_older_forms_tp_and_model_are_chosen(older: Path) -> None:
    write_older(older, degrees=(2, 4))
    assert read(str(older), None, 2).tp == 2
    for tp in (None, 8):
        with pytest.raises(UserError, match=r"layers.csv: column tp_size has 2, 4; choose one by --tp"):
            read(str(older), None, tp)
    assert read(str(older), load_model("Llama-3.1-70B"), 4).shape.name == "Llama-3.1-70B"
    (older.parent / "model.json").unlink()
    with pytest.raises(UserError, match=r"profile: names no model; give its config.json by --model"):
        read(str(older), None, 4)


def test_a_spoilt_older_table_is_named(older: Path) -> None:
    write_older(older, layers=[name for name in OLDER if name != "k_proj"])
    with pytest.raises(UserError, match=r"layers.csv: column layer_name lacks one of q_proj, k_proj, v_proj"):
        read(str(older), None, None)
    write_older(older)
    spoil(older / "layers.csv", lambda table: table.rename({"latency(ns)": "latency"}))
    with pytest.raises(UserError, match=r"layers.csv: column latency\(ns\) is missing; found layer_name, input"):
        read(str(older), None, None)
    write_older(older)
    (older / "attention.csv").unlink()
    with pytest.raises(UserError, match=r"attention.csv: no such file"):
        read(str(older), None, None)
