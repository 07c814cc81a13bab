"""AIConfigurator's tables, in their layout but made up: units, choices of rows, and refusals in one line."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibrate.importers.aiconfigurator import IMPORTER, read
from calibrate.latency import StepLatency
from calibrate.model import load_model
from calibrate.profile import KEYS
from ground.errors import UserError

MODEL = load_model("Llama-3.1-8B")
SOURCE = "box_sxm/vllm/0.24.0"
DESCRIPTION = "gpu:\n  mem_capacity: 85899345920\nmisc:\n  nccl_version: '2.27.3'\n"
GEMM = {"kernel_source": "torch", "gemm_dtype": "bfloat16", "m": 1, "n": 4096, "k": 4096, "latency": 0.02}
PREFILL = {
    "kernel_source": "vllm_flash_attn_fa3",
    "batch_size": 1,
    "isl": 1024,
    "num_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "attn_dtype": "bfloat16",
    "kv_cache_dtype": "bfloat16",
    "step": 0,
    "window_size": 0,
    "latency": 0.04,
}
DECODE = PREFILL | {"isl": 1, "step": 1023, "latency": 0.014}
MOE = {
    "kernel_source": "triton",
    "moe_dtype": "bfloat16",
    "num_tokens": 8,
    "hidden_size": 2048,
    "inter_size": 768,
    "topk": 8,
    "num_experts": 128,
    "moe_tp_size": 1,
    "moe_ep_size": 1,
    "distribution": "balanced",
    "latency": 0.2,
}
REDUCE = {
    "kernel_source": "vLLM_custom_graph",
    "allreduce_dtype": "bfloat16",
    "num_gpus": 4,
    "message_size": 4096,
    "latency": 0.005,
}
NCCL = {
    "kernel_source": "NCCL",
    "op_name": "all_gather",
    "nccl_dtype": "half",
    "num_gpus": 4,
    "message_size": 4096,
    "latency": 0.006,
}


def write(systems: Path, place: str, *rows: Mapping[str, Any]) -> None:
    path = systems / "data" / "box_sxm" / f"{place}_perf.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pl.DataFrame([{"device": "A Box", **row} for row in rows]).write_parquet(path)


def build(systems: Path) -> Path:
    write(systems, "gemm/vllm/0.24.0/gemm", GEMM)
    write(systems, "attention/vllm/0.24.0/context_attention", PREFILL)
    write(systems, "attention/vllm/0.24.0/generation_attention", DECODE)
    write(systems, "moe/vllm/0.24.0/moe", MOE)
    write(systems, "comm/vllm/0.24.0/custom_allreduce", REDUCE)
    write(systems, "comm/nccl/2.27.3/nccl", NCCL)
    (systems / "box_sxm.yaml").write_text(DESCRIPTION, encoding="utf-8")
    return systems


@pytest.fixture
def systems(tmp_path: Path) -> Path:
    return build(tmp_path / "systems")


def table(systems: Path, kernel_class: str) -> pl.DataFrame:
    return read(f"{systems}/{SOURCE}", None, None).tables[kernel_class]


@settings(max_examples=20, deadline=None)
@given(st.floats(1e-3, 1e3))
def test_milliseconds_become_seconds(tmp_path_factory: pytest.TempPathFactory, latency: float) -> None:
    systems = build(tmp_path_factory.mktemp("systems"))
    write(systems, "gemm/vllm/0.24.0/gemm", GEMM | {"latency": latency})
    assert table(systems, "gemm")["seconds"].to_list() == [pytest.approx(latency / 1000)]


@settings(max_examples=20, deadline=None)
@given(st.sampled_from((2, 4, 8)), st.integers(4, 29))
def test_elements_become_bytes_of_one_ranks_input(
    tmp_path_factory: pytest.TempPathFactory, ranks: int, log_size: int
) -> None:
    systems, size = build(tmp_path_factory.mktemp("systems")), 2**log_size
    rows = [
        NCCL | {"op_name": name, "num_gpus": ranks, "message_size": size}
        for name in ("all_gather", "all_reduce", "reduce_scatter", "alltoall")
    ]
    write(systems, "comm/nccl/2.27.3/nccl", *rows)
    write(systems, "comm/vllm/0.24.0/custom_allreduce", REDUCE | {"num_gpus": ranks, "message_size": size})
    rows_read = table(systems, "collective")
    assert rows_read["ranks"].unique().to_list() == [ranks]
    found = dict(zip(rows_read["operation"], rows_read["bytes"], strict=True))
    whole = 2 * size
    assert found == {
        "all_gather": whole // ranks,
        "all_reduce": whole,
        "all_reduce_nccl": whole,
        "all_to_all": whole,
        "reduce_scatter": whole,
    }


def test_every_table_has_its_keys_each_point_once_and_says_where_it_is_from(systems: Path) -> None:
    profile = read(f"{systems}/{SOURCE}", None, None)
    assert profile.tables.keys() == {"gemm", "prefill_attention", "decode_attention", "expert_mlp", "collective"}
    for name, rows in profile.tables.items():
        assert rows.columns == [*KEYS[name], "seconds"]
        assert not rows.select(KEYS[name]).is_duplicated().any()
    assert (profile.model, profile.tp, profile.device, profile.device_memory) == (None, 1, "A Box", 85899345920)
    assert profile.provenance.source == "imported"
    assert profile.provenance.licence == "Apache-2.0"
    assert SOURCE in profile.provenance.note
    assert profile.versions == {"vllm": "0.24.0", "nccl": "2.27.3"}


def test_only_bfloat16_rows_without_a_window_are_read(systems: Path) -> None:
    write(systems, "gemm/vllm/0.24.0/gemm", GEMM, GEMM | {"gemm_dtype": "fp8", "n": 8192})
    others = ({"window_size": 128}, {"kv_cache_dtype": "fp8"}, {"attn_dtype": "fp8"})
    write(
        systems,
        "attention/vllm/0.24.0/context_attention",
        PREFILL,
        *(PREFILL | other | {"isl": 9} for other in others),
        PREFILL | {"step": 5, "isl": 9},
    )
    decodes = [DECODE | other | {"step": 9} for other in (*others, {"isl": 2})]
    write(systems, "attention/vllm/0.24.0/generation_attention", DECODE, *decodes)
    write(systems, "moe/vllm/0.24.0/moe", MOE, MOE | {"moe_dtype": "fp8", "num_tokens": 9})
    write(systems, "comm/nccl/2.27.3/nccl", NCCL, NCCL | {"nccl_dtype": "int8", "message_size": 512})
    assert table(systems, "gemm")["n"].to_list() == [4096]
    assert table(systems, "prefill_attention").select("new_tokens", "sequences").rows() == [(1024, 1)]
    assert table(systems, "decode_attention").select("context", "heads", "kv_heads").rows() == [(1023, 32, 8)]
    assert table(systems, "expert_mlp")["tokens"].to_list() == [8]
    assert table(systems, "collective").filter(pl.col("operation") == "all_gather")["bytes"].to_list() == [2048]


def test_of_two_kernels_at_a_point_flash_attention_3_else_the_faster(systems: Path) -> None:
    place = "attention/vllm/0.24.0/generation_attention"
    fa4 = {"kernel_source": "vllm_flash_attn_fa4", "latency": 0.010}
    write(systems, place, DECODE, DECODE | fa4, DECODE | fa4 | {"step": 1}, DECODE | fa4 | {"step": 1, "latency": 0.02})
    rows = table(systems, "decode_attention").select("context", "seconds").rows()
    assert rows == [(1, pytest.approx(1.0e-5)), (1023, pytest.approx(1.4e-5))]


def test_experts_are_those_with_their_tokens_spread_evenly(systems: Path) -> None:
    write(systems, "moe/vllm/0.24.0/moe", MOE | {"distribution": "power_law_1.2", "latency": 0.1}, MOE)
    assert table(systems, "expert_mlp")["seconds"].to_list() == [pytest.approx(2e-4)]


def test_all_reduce_in_a_graph_and_out_of_it(systems: Path) -> None:
    eager = {"kernel_source": "vLLM_custom_eager", "latency": 0.02}
    write(systems, "comm/vllm/0.24.0/custom_allreduce", REDUCE, REDUCE | eager)
    rows = table(systems, "collective").filter(pl.col("operation").str.starts_with("all_reduce"))
    assert dict(zip(rows["operation"], rows["seconds"], strict=True)) == {
        "all_reduce": pytest.approx(5e-6),
        "all_reduce_eager": pytest.approx(2e-5),
    }


def test_collectives_of_another_version_are_taken_and_said(systems: Path) -> None:
    for place in ("comm/vllm/0.24.0/custom_allreduce", "comm/nccl/2.27.3/nccl"):
        (systems / "data" / "box_sxm" / f"{place}_perf.parquet").unlink()
    for release, latency in (("0.9.0", 0.1), ("0.22.0", 0.2)):
        write(systems, f"comm/vllm/{release}/custom_allreduce", REDUCE | {"latency": latency})
    write(systems, "comm/nccl/2.29.2/nccl", NCCL)
    profile = read(f"{systems}/{SOURCE}", None, None)
    assert profile.versions == {"vllm": "0.24.0", "all_reduce": "0.22.0", "nccl": "2.29.2"}
    rows = profile.tables["collective"]
    assert rows.filter(pl.col("operation") == "all_reduce")["seconds"].to_list() == [pytest.approx(2e-4)]


def test_older_tables_without_windows_and_a_framework_without_experts(systems: Path) -> None:
    old = {key: value for key, value in DECODE.items() if key != "window_size"}
    write(systems, "attention/vllm/0.24.0/generation_attention", old)
    (systems / "data/box_sxm/moe/vllm/0.24.0/moe_perf.parquet").unlink()
    profile = read(f"{systems}/{SOURCE}", None, None)
    assert len(profile.tables["decode_attention"]) == 1
    assert "expert_mlp" not in profile.tables


def test_with_a_model_it_is_that_models_profile(systems: Path) -> None:
    gemm = [GEMM | {"m": m, "n": n, "k": k} for m in (1, 64) for n in (4096, 16384) for k in (4096, 16384)]
    write(systems, "gemm/vllm/0.24.0/gemm", *gemm)
    write(systems, "attention/vllm/0.24.0/context_attention", PREFILL, PREFILL | {"isl": 2048, "latency": 0.09})
    write(systems, "attention/vllm/0.24.0/generation_attention", DECODE, DECODE | {"batch_size": 64, "latency": 0.02})
    profile = read(f"{systems}/{SOURCE}", MODEL, None)
    assert (profile.model, profile.tp) == (MODEL, 1)
    assert SOURCE in profile.provenance.note
    assert StepLatency(profile, MODEL).step((), 1, 1023) > MODEL.layers * 1.4e-5


def test_the_installed_package_is_found_without_importing_it(
    systems: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    package = tmp_path / "site" / "aiconfigurator_core"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')\n", encoding="utf-8")
    systems.rename(package / "systems")
    monkeypatch.syspath_prepend(str(package.parent))
    assert read(SOURCE, None, None).name == "box_sxm vllm 0.24.0"
    assert "aiconfigurator_core" not in sys.modules


def refused(source: str, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        read(source, None, None)
    assert "\n" not in caught.value.format_message()


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("calibrate.importers.aiconfigurator.find_spec", lambda name: None)
    refused(SOURCE, r"aiconfigurator-core is not installed; pip install aiconfigurator-core==0\.12\.0")


def test_what_is_not_there_is_answered_by_what_is(systems: Path) -> None:
    refused(f"{systems}/b300/vllm/0.24.0", r"no system b300 in .*; it has box_sxm")
    refused(f"{systems}/box_sxm/trtllm/0.24.0", r"no framework trtllm in .*; it has vllm")
    refused(f"{systems}/box_sxm/vllm/0.25.0", r"no version 0\.25\.0 in .*; it has 0\.24\.0")
    refused("box_sxm/vllm", r"expected SYSTEM/FRAMEWORK/VERSION, as h100_sxm/vllm/0\.24\.0")
    refused(f"{systems}/data/{SOURCE}", r"data is not a folder; expected a systems folder")


def test_a_spoilt_file_is_named(systems: Path) -> None:
    place = "gemm/vllm/0.24.0/gemm"
    write(systems, place, {key: value for key, value in GEMM.items() if key != "n"})
    refused(f"{systems}/{SOURCE}", r"gemm_perf\.parquet: column n is missing; found device, kernel_source")
    write(systems, place, GEMM, GEMM | {"m": 2, "latency": -1.0})
    refused(f"{systems}/{SOURCE}", r"gemm_perf\.parquet: row 1, column latency is -1\.0; expected a time")
    write(systems, place, GEMM | {"m": "one"})
    refused(f"{systems}/{SOURCE}", r"gemm_perf\.parquet: column m is String; expected numbers")
    write(systems, place, GEMM | {"gemm_dtype": "fp8"})
    refused(f"{systems}/{SOURCE}", r"gemm has no bfloat16 row")
    (systems / "data/box_sxm/gemm/vllm/0.24.0/gemm_perf.parquet").write_bytes(b"no table")
    refused(f"{systems}/{SOURCE}", r"gemm_perf\.parquet: not a readable Parquet file")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("gpu: {}\n", r"box_sxm\.yaml: key gpu\.mem_capacity is None; expected a number of bytes"),
        ("- 1\n", r"box_sxm\.yaml: holds a list"),
        ("gpu: [\n", r"box_sxm\.yaml: not a YAML file"),
    ],
)
def test_a_spoilt_description_is_named(systems: Path, text: str, words: str) -> None:
    write(systems, "gemm/vllm/0.24.0/gemm", GEMM)
    (systems / "box_sxm.yaml").write_text(text, encoding="utf-8")
    refused(f"{systems}/{SOURCE}", words)


def test_no_description_and_a_tp_of_no_model(systems: Path) -> None:
    with pytest.raises(UserError, match=r"tp = 2 without a model"):
        read(f"{systems}/{SOURCE}", None, 2)
    (systems / "box_sxm.yaml").unlink()
    refused(f"{systems}/{SOURCE}", r"box_sxm\.yaml: not readable")


def test_it_is_registered_under_its_name() -> None:
    assert IMPORTER.name == "aiconfigurator"
    assert IMPORTER.read is read
