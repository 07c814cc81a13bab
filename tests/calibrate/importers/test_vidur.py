"""Vidur's tables, in their columns but made up: milliseconds to seconds, layer by layer, and refusals in one line."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibrate.importers.sarathi_attention import attention_rows
from calibrate.importers.vidur import IMPORTER, read
from calibrate.latency import StepLatency
from calibrate.model import load_model
from ground.errors import UserError

MODEL = load_model("Llama-3.1-8B")
OPERATIONS = {
    "emb": 0.01,
    "input_layernorm": 0.02,
    "attn_pre_proj": 0.06,
    "attn_rope": 0.03,
    "attn_post_proj": 0.04,
    "post_attention_layernorm": 0.04,
    "mlp_up_proj": 0.2,
    "mlp_act": 0.05,
    "mlp_down_proj": 0.1,
    "add": 0.01,
}
PATH = Path("attention.csv")


def mlp_row(tokens: int, tp: int = 1, **changed: Any) -> dict[str, Any]:
    times = {f"time_stats.{name}.median": ms * (1 + tokens / 64) for name, ms in OPERATIONS.items()}
    sizes = {"n_head": 32, "n_kv_head": 8, "n_embd": 4096, "n_expanded_embd": 14336, "vocab_size": 128256}
    of_run = {"use_gated_mlp": True, "num_tokens": tokens, "num_tensor_parallel_workers": tp}
    return times | sizes | of_run | changed


def attention_row(chunk: int, kv: int, batch: int, ms: float | None, tp: int = 1, **changed: Any) -> dict[str, Any]:
    return {
        "time_stats.attn_prefill.median": ms if chunk else None,
        "time_stats.attn_decode.median": None if chunk else ms,
        "n_embd": 4096,
        "n_q_head": 32,
        "n_kv_head": 8,
        "block_size": 16,
        "num_tensor_parallel_workers": tp,
        "batch_size": batch,
        "prefill_chunk_size": chunk,
        "kv_cache_size": kv,
        "is_prefill": chunk > 0,
        "attention_backend": "FLASH_ATTENTION",
    } | changed


ATTENTION = [
    attention_row(64, 0, 1, 0.1),
    attention_row(64, 512, 1, 0.2),
    attention_row(128, 0, 1, 0.15),
    attention_row(0, 512, 1, 0.02),
    attention_row(0, 1024, 1, 0.03),
    attention_row(0, 512, 8, 0.05),
]


def frame(rows: list[dict[str, Any]]) -> pl.DataFrame:
    return pl.DataFrame(rows, infer_schema_length=None)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "compute" / "a100" / "meta-llama" / "Meta-Llama-3-8B"
    folder.mkdir(parents=True)
    slow = {"time_stats.emb.median": 7.0}
    rows = [mlp_row(tokens, tp, **(slow if tp == 2 else {})) for tp in (1, 2) for tokens in (1, 64, 1024)]
    frame(rows).write_csv(folder / "mlp.csv")
    both = ATTENTION + [row | {"num_tensor_parallel_workers": 2} for row in ATTENTION]
    frame(both).write_csv(folder / "attention.csv")
    return folder


def layer(table: pl.DataFrame, name: str) -> dict[int, float]:
    rows = table.filter(pl.col("layer") == name)
    return dict(zip(rows[:, 1].to_list(), rows["seconds"].to_list(), strict=True))


# Attention


@given(
    st.dictionaries(
        st.tuples(st.integers(1, 4096), st.integers(0, 8192)), st.floats(1e-3, 1e3), min_size=1, max_size=8
    ),
    st.dictionaries(st.tuples(st.integers(1, 256), st.integers(1, 8192)), st.floats(1e-3, 1e3), min_size=1, max_size=8),
)
def test_every_attention_row_is_one_point_in_seconds(
    prefills: dict[tuple[int, int], float], decodes: dict[tuple[int, int], float]
) -> None:
    rows = [attention_row(chunk, kv, 1, ms) for (chunk, kv), ms in prefills.items()]
    rows += [attention_row(0, kv, batch, ms) for (batch, kv), ms in decodes.items()]
    expected = {(chunk, kv, 0, 0): ms / 1000 for (chunk, kv), ms in prefills.items()}
    expected |= {(0, 0, batch, kv): ms / 1000 for (batch, kv), ms in decodes.items()}
    found = {row[:4]: row[4] for row in attention_rows(frame(rows), 1, PATH).iter_rows()}
    assert found == pytest.approx(expected)


def test_a_point_timed_thrice_is_its_median_and_batched_prefills_are_left_out() -> None:
    rows = [*ATTENTION, *(attention_row(0, 512, 1, ms) for ms in (0.04, 0.5)), attention_row(64, 0, 2, 9.0)]
    table = attention_rows(frame(rows), 1, PATH)
    assert len(table) == len(ATTENTION)
    point = table.filter(pl.col("n_decode") == 1, pl.col("kv_decode") == 512)
    assert point["seconds"].to_list() == [pytest.approx(4e-5)]
    assert table.filter(pl.col("prefill_chunk") == 64)["seconds"].max() == pytest.approx(2e-4)


@given(st.integers(1, 256), st.integers(1, 4096), st.integers(0, 255), st.integers(1, 2048), st.integers(0, 4096))
def test_where_all_keys_are_counted_each_sequence_has_its_share_less_its_own(
    batch: int, share: int, rest: int, chunk: int, prefix: int
) -> None:
    """Keys that the batch does not divide are timed as the share rounded down."""
    rows = [
        attention_row(chunk, chunk + prefix, 1, 0.1),
        attention_row(0, batch * share + rest % batch, batch, 0.2),
        attention_row(0, batch - 1, batch, 0.3),  # not a key a sequence
        attention_row(chunk, chunk - 1, 1, 0.4),  # fewer keys than queries
    ]
    found = attention_rows(frame(rows), 1, PATH, counts_all_keys=True).rows()
    assert found == [(0, 0, batch, share - 1, pytest.approx(2e-4)), (chunk, prefix, 0, 0, pytest.approx(1e-4))]


def test_writing_the_cache_is_part_of_attention_where_it_was_timed_apart() -> None:
    table = frame(ATTENTION).with_columns(pl.lit(0.01).alias("time_stats.attn_kv_cache_save.median"))
    plain, saved = attention_rows(frame(ATTENTION), 1, PATH), attention_rows(table, 1, PATH)
    assert saved["seconds"].to_list() == pytest.approx([seconds + 1e-5 for seconds in plain["seconds"]])


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda t: t.drop("kv_cache_size"), r"attention.csv: column kv_cache_size is missing; found time_stats"),
        (lambda t: t.with_columns(batch_size=pl.lit("x")), r"attention.csv: column batch_size is String; expected num"),
        (lambda t: t.filter(pl.col("is_prefill")), r"attention.csv: no decode row at num_tensor_parallel_workers 1"),
        (lambda t: t.filter(~pl.col("is_prefill")), r"attention.csv: no prefill row at num_tensor_parallel_workers 1"),
        (
            lambda t: t.with_columns(num_tensor_parallel_workers=pl.lit(4)),
            r"attention.csv: no row has num_tensor_parallel_workers 1; found 4",
        ),
        (
            lambda t: pl.concat([t, t.head(1).with_columns(block_size=pl.lit(32, dtype=pl.Int64))]),
            r"attention.csv: column block_size mixes 16, 32; expected one",
        ),
        (
            lambda t: pl.concat([t, frame([attention_row(0, 64, 1, None)]).cast(t.schema)]),  # type: ignore[arg-type]
            r"attention.csv: row 6, column time_stats.attn_decode.median is empty; expected a time in milliseconds",
        ),
        (
            lambda t: pl.concat([t, frame([attention_row(32, 64, 1, -1.0)]).cast(t.schema)]),  # type: ignore[arg-type]
            r"attention.csv: row 6, column time_stats.attn_prefill.median is -1; expected a time in milliseconds",
        ),
    ],
)
def test_attention_that_cannot_be_read(spoil: Callable[[pl.DataFrame], pl.DataFrame], words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        attention_rows(spoil(frame(ATTENTION)), 1, PATH)
    assert "\n" not in caught.value.format_message()


# Profiles


def test_each_operation_becomes_its_layer_in_seconds(folder: Path) -> None:
    dense = read(str(folder), MODEL, 1).tables["dense"]
    for operation, name in {
        "emb": "embedding",
        "attn_pre_proj": "qkv_proj",
        "attn_rope": "rotary_emb",
        "attn_post_proj": "o_proj",
        "mlp_up_proj": "gate_up_proj",
        "mlp_act": "act_fn",
        "mlp_down_proj": "down_proj",
    }.items():
        expected = {tokens: OPERATIONS[operation] * (1 + tokens / 64) / 1000 for tokens in (1, 64, 1024)}
        assert layer(dense, name) == pytest.approx(expected)


def test_the_two_norms_and_the_addition_of_a_layer_are_kept_whole(folder: Path) -> None:
    dense = read(str(folder), MODEL, 1).tables["dense"]
    timed = OPERATIONS["input_layernorm"] + OPERATIONS["post_attention_layernorm"] + OPERATIONS["add"]
    assert 2 * layer(dense, "layernorm")[64] == pytest.approx(2 * timed / 1000)
    assert layer(dense, "final_layernorm") == layer(dense, "layernorm")


def test_a_step_can_be_asked_and_what_vidur_lacks_is_said(folder: Path) -> None:
    profile = read(str(folder), MODEL, 1)
    assert StepLatency(profile, MODEL).step((), 1, 512) > MODEL.layers * 0.4e-3
    assert profile.grid["borrowed"]["lm_head"].startswith("128256×4096 from ")
    assert profile.grid["assumed"].keys() == {"sampler", "final_layernorm", "device_memory"}
    assert (profile.device, profile.device_memory) == ("a100", 80 * 2**30)
    assert (profile.provenance.source, profile.provenance.licence) == ("imported", "MIT")


def test_lm_head_takes_longer_than_the_largest_product_it_is_borrowed_from(folder: Path) -> None:
    tables = read(str(folder), MODEL, 1).tables
    head, largest = layer(tables["per_sequence"], "lm_head"), layer(tables["dense"], "gate_up_proj")
    assert all(head[m] > largest[m] for m in (1, 64, 1024))


def test_a_number_of_tokens_timed_twice_is_the_median(folder: Path) -> None:
    rows = [mlp_row(1), mlp_row(1, **{"time_stats.emb.median": 1.0}), mlp_row(64)]
    frame(rows).write_csv(folder / "mlp.csv")
    expected = (OPERATIONS["emb"] * (1 + 1 / 64) + 1.0) / 2 / 1000
    assert layer(read(str(folder), MODEL, None).tables["dense"], "embedding")[1] == pytest.approx(expected)


def test_collectives_beside_it_are_those_of_one_node(folder: Path) -> None:
    columns = {"size": 8192, "collective": "all_reduce"}
    rows = [
        columns | {"time_stats.all_reduce.median": 0.03, "num_workers": 4, "devices_per_node": 4},
        columns | {"time_stats.all_reduce.median": 0.9, "num_workers": 4, "devices_per_node": 2},
    ]
    frame(rows).write_csv(folder / "all_reduce.csv")
    found = read(str(folder), MODEL, 1).tables["collective"]
    assert found.rows() == [("all_reduce", 4, 8192, pytest.approx(3e-5))]


def test_tp_is_chosen_among_those_measured(folder: Path) -> None:
    profile = read(str(folder), MODEL, 2)
    assert profile.tp == 2
    assert set(layer(profile.tables["dense"], "embedding").values()) == {7.0 / 1000}
    with pytest.raises(UserError, match=r"mlp.csv: column num_tensor_parallel_workers has 1, 2; no row of 4"):
        read(str(folder), MODEL, 4)
    with pytest.raises(UserError, match=r"num_tensor_parallel_workers has 1, 2; no --tp to choose one"):
        read(str(folder), MODEL, None)


def test_a_padded_vocabulary_is_the_models(folder: Path) -> None:
    frame([mlp_row(1, vocab_size=129024), mlp_row(64, vocab_size=129024)]).write_csv(folder / "mlp.csv")
    assert read(str(folder), MODEL, 1).model == MODEL


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"n_embd": 8192}, r"mlp.csv: column n_embd is 8192; Llama-3.1-8B has hidden 4096"),
        ({"n_head": 64}, r"mlp.csv: column n_head is 64; Llama-3.1-8B has heads 32"),
        ({"n_kv_head": 32}, r"mlp.csv: column n_kv_head is 32; Llama-3.1-8B has kv_heads 8"),
        ({"n_expanded_embd": 11008}, r"mlp.csv: column n_expanded_embd is 11008; Llama-3.1-8B has intermediate 14336"),
        ({"vocab_size": 32000}, r"mlp.csv: column vocab_size is 32000; Llama-3.1-8B has vocab 128256"),
        ({"use_gated_mlp": False}, r"mlp.csv: column use_gated_mlp is not True in every row"),
        ({"time_stats.add.median": None}, r"column time_stats.add.median is String; expected numbers"),
        ({"time_stats.emb.median": -1.0}, r"mlp.csv: row 0, column time_stats.emb.median is -1.0"),
    ],
)
def test_another_models_table_or_a_spoilt_one_is_refused(folder: Path, changed: dict[str, Any], words: str) -> None:
    frame([mlp_row(1, **changed), mlp_row(64, **changed)]).write_csv(folder / "mlp.csv")
    with pytest.raises(UserError, match=words) as caught:
        read(str(folder), MODEL, 1)
    assert "\n" not in caught.value.format_message()


def test_attention_of_another_model_is_refused(folder: Path) -> None:
    frame([row | {"n_q_head": 40} for row in ATTENTION]).write_csv(folder / "attention.csv")
    with pytest.raises(UserError, match=r"attention.csv: column n_q_head is 40; Llama-3.1-8B has heads 32"):
        read(str(folder), MODEL, 1)


def test_no_model_no_files_and_models_that_vidur_does_not_time(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"do not name their model; give it by --model"):
        read(str(folder), None, 1)
    with pytest.raises(UserError, match=r"mlp.csv: no such file; expected a folder with mlp.csv and attention.csv"):
        read(str(tmp_path), MODEL, 1)
    for model in (load_model("Qwen3-30B-A3B"), load_model("Qwen3-32B"), replace(MODEL, dtype_bytes=4)):
        with pytest.raises(UserError, match=r"is not a dense 16-bit model without QK norms"):
            read(str(folder), model, 1)
    (folder / "mlp.csv").write_bytes(b"")
    with pytest.raises(UserError, match=r"mlp.csv: not a readable CSV file"):
        read(str(folder), MODEL, 1)


def test_it_is_registered_under_its_name() -> None:
    assert IMPORTER.name == "vidur"
    assert IMPORTER.read is read
