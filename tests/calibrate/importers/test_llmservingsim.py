"""LLMServingSim's profiles in both forms, hand-written: units, what is taken from where, and refusals in one line."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st
from llmservingsim_folders import (
    CONFIG,
    DENSE,
    EXPERTS_CONFIG,
    META,
    OLDER,
    TOKENS,
    attention_us,
    dense_us,
    older_ns,
    write_csv,
    write_model,
    write_older,
    write_tp,
    write_variant,
)

from calibrate.commands import calibrate
from calibrate.importers.llmservingsim import IMPORTER, read
from calibrate.latency import StepLatency
from calibrate.model import load_model
from calibrate.profile import Profile
from ground.errors import UserError

SKEW = "n,nb,pc,kp,kvs,kv_big,t_skew_us,t_mean_us"


@pytest.fixture
def variant(tmp_path: Path) -> Path:
    return write_variant(tmp_path)


@pytest.fixture
def older(tmp_path: Path) -> Path:
    (tmp_path / "h100-70b").mkdir()
    write_model(tmp_path / "h100-70b", name="x").rename(tmp_path / "h100-70b" / "model.json")
    return write_older(tmp_path / "h100-70b" / "profile")


def layer(table: pl.DataFrame, name: str) -> dict[int, float]:
    rows = table.filter(pl.col("layer") == name)
    return dict(zip(rows[:, 1].to_list(), rows["seconds"].to_list(), strict=True))


# The form of version 2


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


# Unequal contexts


def skew_rows(excess: float) -> list[tuple[Any, ...]]:
    return [
        (n, n // 4, chunk, 0, short, short * ratio, 100.0 * (1 + excess * ratio), 100.0)
        for chunk in (0, 64)
        for n in (8, 32)
        for short in (64, 256)
        for ratio in (2, 4)
    ]


def test_unequal_batches_are_read_only_where_meta_says_so(variant: Path) -> None:
    write_csv(variant / "tp1" / "skew.csv", SKEW, skew_rows(0.2))
    off = read(str(variant), None, None)
    assert "skew" not in off.tables and "skew_model" not in off.grid and not off.errors
    (variant / "meta.yaml").write_text(yaml.safe_dump({k: v for k, v in META.items() if k != "skew_profile"}))
    assert "skew" not in read(str(variant), None, None).tables

    (variant / "meta.yaml").write_text(yaml.safe_dump(META | {"skew_profile": {"enabled": True}}))
    on = read(str(variant), None, None)
    assert on.grid["skew_model"] in ("waves", "neighbours")
    assert {"skew.mean_context", "skew.neighbours"} <= on.errors.keys()
    assert all(0 <= error["held_out_median"] <= error["held_out_p90"] for error in on.errors.values())
    assert {error["held_out_points"] for error in on.errors.values()} == {16.0}
    named = on.errors[f"skew.{on.grid['skew_model']}"]["held_out_p90"]
    assert named == min(error["held_out_p90"] for error in on.errors.values())
    row = on.tables["skew"].row(0, named=True)
    assert row["seconds"] / row["equal_seconds"] == pytest.approx(1.4)
    times = StepLatency(on, on.shape)
    assert times.skew is not None
    assert StepLatency(off, off.shape).skew is None


def test_where_the_mean_context_predicts_best_no_model_is_named(variant: Path) -> None:
    (variant / "meta.yaml").write_text(yaml.safe_dump(META | {"skew_profile": {"enabled": True}}))
    write_csv(variant / "tp1" / "skew.csv", SKEW, skew_rows(0.0))
    profile = read(str(variant), None, None)
    assert "skew_model" not in profile.grid
    assert profile.errors["skew.mean_context"]["held_out_p90"] == 0.0


def test_a_model_is_named_for_its_worst_batches_and_not_its_usual_ones(variant: Path) -> None:
    """Two thirds take no longer for being unequal, the others twice as long: the mean is right more often than not."""
    (variant / "meta.yaml").write_text(yaml.safe_dump(META | {"skew_profile": {"enabled": True}}))
    shapes = [(short, ratio) for short in (32, 64, 128, 256) for ratio in (2, 8) if ratio == 2 or short in (64, 128)]
    rows = [
        (n, n // 4, chunk, 0, short, short * ratio, 200.0 if ratio == 8 else 100.0, 100.0)
        for chunk in (0, 64)
        for n in (8, 32)
        for short, ratio in shapes
    ]
    write_csv(variant / "tp1" / "skew.csv", SKEW, rows)
    profile = read(str(variant), None, None)
    assert profile.errors["skew.mean_context"]["held_out_median"] == 0.0
    assert profile.errors["skew.neighbours"]["held_out_median"] > 0.0
    assert profile.grid["skew_model"] == "neighbours"


# What cannot be read


def spoil(path: Path, change: Callable[[pl.DataFrame], pl.DataFrame]) -> None:
    change(pl.read_csv(path)).write_csv(path)


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        ("dense.csv", lambda t: t.drop("tokens"), r"dense.csv: column tokens is missing; found layer, time_us"),
        ("dense.csv", lambda t: t.drop("layer"), r"dense.csv: column layer is missing; found tokens, time_us"),
        ("dense.csv", lambda t: t.drop("time_us"), r"dense.csv: column time_us is missing; found layer, tokens"),
        ("attention.csv", lambda t: t.drop("kv_decode"), r"attention.csv: column kv_decode is missing"),
        (
            "per_sequence.csv",
            lambda t: t.with_columns(sequences=pl.lit("x")),
            r"per_sequence.csv: column sequences is String; expected numbers",
        ),
        (
            "per_sequence.csv",
            lambda t: t.with_columns(time_us=pl.when(pl.int_range(pl.len()) != 2).then("time_us")),
            r"per_sequence.csv: row 2, column time_us is None; expected a time",
        ),
        (
            "dense.csv",
            lambda t: t.with_columns(time_us=pl.when(pl.int_range(pl.len()) == 3).then(-1.5).otherwise("time_us")),
            r"dense.csv: row 3, column time_us is -1.5; expected a time",
        ),
    ],
)
def test_a_spoilt_table_is_named(
    variant: Path, file: str, change: Callable[[pl.DataFrame], pl.DataFrame], words: str
) -> None:
    spoil(variant / "tp1" / file, change)
    with pytest.raises(UserError, match=words) as caught:
        read(str(variant), None, None)
    assert "\n" not in caught.value.format_message()


def test_a_spoilt_skew_table_is_named(variant: Path) -> None:
    (variant / "meta.yaml").write_text(yaml.safe_dump(META | {"skew_profile": {"enabled": True}}))
    with pytest.raises(UserError, match=r"skew.csv: no such file"):
        read(str(variant), None, None)
    write_csv(variant / "tp1" / "skew.csv", SKEW.replace("kv_big", "big"), skew_rows(0.2))
    with pytest.raises(UserError, match=r"skew.csv: column kv_big is missing; found n, nb"):
        read(str(variant), None, None)


@pytest.mark.parametrize(
    ("text", "words"),
    [("model: [", r"meta.yaml: not YAML \("), ("- a\n- b\n", r"meta.yaml: found list, expected a mapping of keys")],
)
def test_a_spoilt_meta_is_named(variant: Path, text: str, words: str) -> None:
    (variant / "meta.yaml").write_text(text)
    with pytest.raises(UserError, match=words) as caught:
        read(str(variant), None, None)
    assert "\n" not in caught.value.format_message()


def test_missing_files_and_folders_are_named(variant: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere: no such folder; expected a profile of LLMServingSim"):
        read(str(tmp_path / "nowhere"), None, None)
    with pytest.raises(UserError, match=r"models: holds neither dense.csv nor layers.csv, nor folders tp1, tp2"):
        read(str(tmp_path / "models"), None, None)
    (variant / "tp1" / "attention.csv").unlink()
    with pytest.raises(UserError, match=r"attention.csv: no such file"):
        read(str(variant), None, None)
    (variant / "tp1" / "attention.csv").write_bytes(b"")
    with pytest.raises(UserError, match=r"attention.csv: not a readable CSV file") as caught:
        read(str(variant), None, None)
    assert "\n" not in caught.value.format_message()


# The older form


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


# The command


def run(*arguments: object) -> Result:
    return CliRunner().invoke(calibrate, ["import", *(str(argument) for argument in arguments)])


def test_import_writes_what_load_reads_back(tmp_path: Path) -> None:
    variant, out = write_variant(tmp_path / "src", degrees=(1, 2)), tmp_path / "new" / "profile"
    result = run("llmservingsim", variant, "--tp", 2, "-o", out)
    assert result.exit_code == 0, result.output
    assert f"Profile written to {out}" in " ".join(result.output.split()) and "gate_up_proj" in result.output
    loaded, direct = Profile.load(out), read(str(variant), None, 2)
    assert {name: table.to_dicts() for name, table in loaded.tables.items()} == {
        name: table.to_dicts() for name, table in direct.tables.items()
    }
    assert replace(loaded, tables={}) == replace(direct, tables={})


def test_import_takes_the_model_given(tmp_path: Path) -> None:
    variant = write_variant(tmp_path / "src")
    config = write_model(tmp_path, CONFIG | {"num_hidden_layers": 5}, "Five")
    assert run("llmservingsim", variant, "--model", config, "-o", tmp_path / "p").exit_code == 0
    assert Profile.load(tmp_path / "p").shape.layers == 5


def test_import_replaces_nothing_unless_forced(tmp_path: Path) -> None:
    variant, out = write_variant(tmp_path / "src"), tmp_path / "p"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    refused = run("llmservingsim", variant, "-o", out)
    assert refused.exit_code == 2 and "--force" in refused.output
    assert [path.name for path in out.iterdir()] == ["notes.txt"]
    assert run("llmservingsim", variant, "-o", out, "--force").exit_code == 0
    assert Profile.load(out).tp == 1


@pytest.mark.parametrize(
    ("format", "source", "words"),
    [
        ("nonsense", "src", "nonsense: no such format; expected one of aiconfigurator, llmservingsim, vidur"),
        ("llmservingsim", "nowhere", "nowhere: no such folder"),
        ("llmservingsim", "src", "holds neither dense.csv nor layers.csv"),
    ],
)
def test_a_wrong_import_writes_nothing(tmp_path: Path, format: str, source: str, words: str) -> None:
    (tmp_path / "src").mkdir()
    result = run(format, tmp_path / source, "-o", tmp_path / "p")
    assert result.exit_code == 2 and words in result.output
    assert [path.name for path in tmp_path.iterdir()] == ["src"]


def test_list_shows_formats_and_collectives() -> None:
    listed = CliRunner().invoke(calibrate, ["list"], env={"COLUMNS": "200"})
    assert listed.exit_code == 0
    for word in ("aiconfigurator", "llmservingsim", "vidur", "Collectives between GPUs", "reduce_scatter", "l40s"):
        assert word in listed.output, word


def test_it_is_registered_under_its_name() -> None:
    assert IMPORTER.name == "llmservingsim" and IMPORTER.read is read
