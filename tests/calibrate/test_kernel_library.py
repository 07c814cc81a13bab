"""A model's layers out of kernels of no model: exact where measured, borrowed by efficiency where not, and said so."""

from dataclasses import replace
from itertools import pairwise

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibrate.attention_law import prefill_work
from calibrate.gemm_table import GemmTable
from calibrate.kernel_library import library_profile
from calibrate.latency import StepLatency
from calibrate.model import ModelShape, load_model
from calibrate.profile import Profile, Provenance
from ground.errors import UserError

MODEL = load_model("Llama-3.1-8B")
EXPERTS = load_model("Qwen3-30B-A3B")
PEAK, BANDWIDTH, FLOOR = 1e15, 3e12, 2e-6
MS = (1, 8, 64, 512, 4096)
SIZES = (512, 1024, 2048, 4096, 6144, 8192, 12288, 16384, 51200)


def roofline(m: int, n: int, k: int) -> float:
    return max(2.0 * m * n * k / PEAK, 2.0 * (n * k + m * (n + k)) / BANDWIDTH)


def gemm_rows(sizes: tuple[int, ...] = SIZES, efficiency: float = 1.0) -> pl.DataFrame:
    rows = [(m, n, k, max(FLOOR, roofline(m, n, k) / efficiency)) for m in MS for n in sizes for k in sizes]
    return pl.DataFrame(rows, schema=["m", "n", "k", "seconds"], orient="row")


def prefill_rows(heads: int, kv_heads: int, head_dim: int = 128) -> pl.DataFrame:
    lengths = (1, 16, 256, 2048, 16384)
    rows = [(heads, kv_heads, head_dim, 1, n, 1e-5 + 3e-11 * heads * prefill_work(n, 0) / 32) for n in lengths]
    return pl.DataFrame(
        rows, schema=["heads", "kv_heads", "head_dim", "sequences", "new_tokens", "seconds"], orient="row"
    )


def decode_rows(heads: int, kv_heads: int, head_dim: int = 128) -> pl.DataFrame:
    rows = [
        (heads, kv_heads, head_dim, n, context, 1e-5 + 1e-9 * kv_heads * n * context / 8)
        for n in (1, 4, 64)
        for context in (1, 1023, 131071)
    ]
    return pl.DataFrame(rows, schema=["heads", "kv_heads", "head_dim", "sequences", "context", "seconds"], orient="row")


def expert_rows(model: ModelShape, tp: int) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "hidden": model.hidden,
            "intermediate": model.moe_intermediate,
            "experts": model.experts,
            "experts_per_token": model.experts_per_token,
            "tp": tp,
            "ep": 1,
            "tokens": [1, 8, 64],
            "seconds": [5e-5, 2e-4, 4e-4],
        }
    )


def library(**tables: pl.DataFrame) -> Profile:
    held = {"gemm": gemm_rows(), "prefill_attention": prefill_rows(32, 8), "decode_attention": decode_rows(32, 8)}
    return Profile(
        name="lib",
        device="a device",
        model=None,
        tp=1,
        dtype="bfloat16",
        provenance=Provenance("imported", "made up", "none"),
        tables=held | tables,
        device_memory=80 * 2**30,
    )


def layer(profile: Profile, name: str, kernel_class: str = "dense") -> dict[int, float]:
    table = profile.tables[kernel_class].filter(pl.col("layer") == name)
    return dict(zip(table[:, 1].to_list(), table["seconds"].to_list(), strict=True))


# Products


@given(st.sampled_from(SIZES), st.sampled_from(SIZES))
def test_a_measured_product_is_what_was_measured(n: int, k: int) -> None:
    product = GemmTable(gemm_rows()).product(n, k)
    assert product.borrowed_from == []
    assert product.seconds == [max(FLOOR, roofline(m, n, k)) for m in MS]


@given(st.integers(4097, 16383), st.sampled_from((4096, 8192)), st.floats(0.1, 1.0))
def test_of_one_efficiency_a_borrowed_product_has_it_too(n: int, k: int, efficiency: float) -> None:
    """Whatever the efficiency, it cancels: the table's own peak and bandwidth are that much below the device's."""
    product = GemmTable(gemm_rows(efficiency=efficiency)).product(n, k)
    assert product.seconds == pytest.approx([roofline(m, n, k) / efficiency for m in MS], rel=1e-6)


@given(st.lists(st.integers(513, 51199), min_size=2, max_size=5, unique=True), st.sampled_from((4096, 8192)))
def test_more_outputs_never_take_less_time(ns: list[int], k: int) -> None:
    table = GemmTable(gemm_rows())
    products = [table.product(n, k).seconds for n in sorted(ns)]
    for smaller, larger in pairwise(products):
        assert all(a <= b * (1 + 1e-12) for a, b in zip(smaller, larger, strict=True))


@given(st.floats(0.2, 1.0), st.floats(0.2, 1.0), st.integers(4097, 8191))
def test_a_borrowed_efficiency_lies_between_its_neighbours(low: float, high: float, n: int) -> None:
    rows = gemm_rows((2048, 4096, 8192, 16384)).filter(pl.col("k") == 4096)
    share = pl.when(pl.col("n") == 4096).then(low).when(pl.col("n") == 8192).then(high).otherwise(1.0)
    table = GemmTable(rows.with_columns(seconds=pl.col("seconds") / share))
    product = table.product(n, 4096)
    assert product.borrowed_from == [(4096, 4096), (8192, 4096)]
    for m, seconds in zip(product.ms, product.seconds, strict=True):
        efficiency = roofline(m, n, 4096) / seconds
        assert min(low, high) * 0.999 <= efficiency <= max(low, high) * 1.001


def test_beyond_the_border_the_borders_efficiency_goes_on() -> None:
    product = GemmTable(gemm_rows()).product(128256, 4096)
    assert product.borrowed_from == [(51200, 4096)]
    assert product.seconds == pytest.approx([roofline(m, 128256, 4096) for m in MS])


def test_where_neither_size_was_measured_the_corners_count() -> None:
    product = GemmTable(gemm_rows()).product(5000, 7000)
    assert set(product.borrowed_from) == {(4096, 6144), (6144, 6144), (4096, 8192), (6144, 8192)}


def test_the_figures_of_the_device() -> None:
    table = GemmTable(gemm_rows())
    assert table.peak == pytest.approx(PEAK)
    assert table.bandwidth == pytest.approx(BANDWIDTH)
    assert table.floor == FLOOR


def test_a_product_in_the_cache_is_not_the_bandwidth() -> None:
    cached = pl.col("seconds") / pl.when((pl.col("m") == 1) & (pl.col("n") <= 4096)).then(3.0).otherwise(1.0)
    rows = gemm_rows((2048, 4096, 16384)).with_columns(seconds=cached)
    assert GemmTable(rows).bandwidth == pytest.approx(BANDWIDTH)


def test_borrow_errors_are_nothing_on_a_roofline_and_found_where_a_shape_departs() -> None:
    rows = gemm_rows((4096, 8192, 16384))
    inside = pl.col("inside")
    assert GemmTable(rows).borrow_errors().filter(inside)["error"].abs().max() == pytest.approx(0.0, abs=1e-9)
    odd = pl.when((pl.col("n") == 8192) & (pl.col("k") == 4096)).then(2.0).otherwise(1.0)
    errors = GemmTable(rows.with_columns(seconds=pl.col("seconds") * odd)).borrow_errors()
    of_odd = errors.filter(pl.col("hidden") == "n", pl.col("n") == 8192, pl.col("k") == 4096)
    assert of_odd["error"].to_list() == pytest.approx([-0.5] * len(MS))


# Profiles


def test_a_profile_of_the_model_that_a_step_can_be_asked_of() -> None:
    profile = library_profile(library(), MODEL, 1)
    step = StepLatency(profile, MODEL).step((), 1, 1023)
    products = sum(
        (1 if linear.name == "lm_head" else MODEL.layers) * max(FLOOR, roofline(1, linear.outputs, linear.inputs))
        for linear in MODEL.linears()
    )
    attention = MODEL.layers * (1e-5 + 1e-9 * 1023)
    kernels = 4 * MODEL.layers + 3  # two norms, rotary and activation a layer; embedding, last norm, sampler
    assert step == pytest.approx(products + attention + kernels * FLOOR, rel=5e-3)


def test_what_is_borrowed_and_what_is_assumed_is_listed() -> None:
    grid = library_profile(library(), MODEL, 1).grid
    assert grid["borrowed"] == {
        "gate_up_proj": "28672×4096 from 16384×4096, 51200×4096",
        "down_proj": "4096×14336 from 4096×12288, 4096×16384",
        "lm_head": "128256×4096 from 51200×4096",
    }
    moved = {"embedding", "layernorm", "rotary_emb", "act_fn", "final_layernorm", "sampler"}
    assert grid["assumed"].keys() == moved | {"attention"}


@pytest.mark.parametrize("tp", [1, 2, 4])
def test_a_shard_is_looked_up_by_its_own_shapes(tp: int) -> None:
    held = library(prefill_attention=prefill_rows(32 // tp, 8 // tp), decode_attention=decode_rows(32 // tp, 8 // tp))
    profile = library_profile(held, MODEL, tp)
    assert profile.tp == tp
    for linear in MODEL.linears(tp):
        kernel_class = "per_sequence" if linear.name == "lm_head" else "dense"
        assert layer(profile, linear.name, kernel_class)[4096] == pytest.approx(
            roofline(4096, linear.outputs, linear.inputs)
        )
    assert not {"prefill_attention", "decode_attention"} & profile.grid["borrowed"].keys()


def test_attention_is_exact_where_it_was_measured() -> None:
    held = library()
    rows = library_profile(held, MODEL, 1).tables["attention"]
    squares = rows.filter((pl.col("prefill_chunk") > 0) & (pl.col("kv_prefill") == 0))
    assert squares["seconds"].to_list() == held.tables["prefill_attention"]["seconds"].to_list()
    decodes = rows.filter(pl.col("n_decode") > 0)
    assert decodes["seconds"].to_list() == held.tables["decode_attention"]["seconds"].to_list()


def test_a_prefill_behind_a_prefix_costs_its_pairs_and_no_less_than_a_decode() -> None:
    rows = library_profile(library(), MODEL, 1).tables["attention"]
    behind = rows.filter((pl.col("prefill_chunk") > 0) & (pl.col("kv_prefill") > 0))
    assert (16384, 131072) in behind.select("prefill_chunk", "kv_prefill").rows()  # no hole in the grid
    for chunk, kv, _, _, seconds in behind.iter_rows():
        square, decode = 1e-5 + 3e-11 * prefill_work(chunk, kv), 1e-5 + 1e-9 * (kv + chunk - 1)
        assert seconds == pytest.approx(max(square, decode))


@given(ratio=st.sampled_from((2, 4)))
def test_heads_that_were_not_measured_are_scaled_and_said(ratio: int) -> None:
    """Above the floor prefill follows query heads and decode KV heads, as the made-up tables do."""
    held = library(
        prefill_attention=prefill_rows(32 * ratio, 8 * ratio), decode_attention=decode_rows(32 * ratio, 8 * ratio)
    )
    profile, exact = library_profile(held, MODEL, 1), library_profile(library(), MODEL, 1)
    wanted = f"32 heads on 8 KV heads from {32 * ratio} on {8 * ratio}, head_dim 128"
    assert profile.grid["borrowed"]["prefill_attention"] == profile.grid["borrowed"]["decode_attention"] == wanted
    # The floor is a row's smallest time, which holds one token's work too.
    assert profile.tables["attention"]["seconds"].to_list() == pytest.approx(
        exact.tables["attention"]["seconds"].to_list(), rel=1e-2
    )


def test_experts_are_of_the_models_shape_and_count_the_experts_they_reach() -> None:
    held = library(
        expert_mlp=expert_rows(EXPERTS, 2),
        prefill_attention=prefill_rows(16, 2),
        decode_attention=decode_rows(16, 2),
    )
    moe = library_profile(held, EXPERTS, 2).tables["moe"]
    assert moe["activated_experts"].to_list() == [8, 64, 128]
    router = max(FLOOR, roofline(1, EXPERTS.experts, EXPERTS.hidden))
    assert moe["seconds"][0] == pytest.approx(5e-5 + router)
    with pytest.raises(UserError, match=r"no experts of the shape of Qwen3-30B-A3B .*experts 128, .*tp 1, ep 1"):
        library_profile(replace(held, tables=held.tables | {"prefill_attention": prefill_rows(32, 4)}), EXPERTS, 1)


def test_collectives_come_as_they_are() -> None:
    table = pl.DataFrame({"operation": ["all_reduce"], "ranks": [2], "bytes": [8192], "seconds": [5e-6]})
    assert library_profile(library(collective=table), MODEL, 1).tables["collective"].equals(table)


def test_it_cannot_be_looked_up() -> None:
    held = library()
    for missing in ("gemm", "prefill_attention", "decode_attention"):
        without = replace(held, tables={name: table for name, table in held.tables.items() if name != missing})
        with pytest.raises(UserError, match=f"no kernel class {missing}, which Llama-3.1-8B needs"):
            library_profile(without, MODEL, 1)
    with pytest.raises(UserError, match=r"tiny-llama has 32-bit weights"):
        library_profile(held, load_model("tiny-llama"), 1)
    with pytest.raises(
        UserError, match=r"prefill_attention has no head_dim 80; it holds 128|decode_attention has no head"
    ):
        library_profile(held, replace(MODEL, head_dim=80), 1)
    with pytest.raises(UserError, match=r"cannot be divided over tp = 3"):
        library_profile(held, MODEL, 3)
    with pytest.raises(UserError, match=r"prefill_attention has no row of one sequence"):
        several = prefill_rows(32, 8).with_columns(sequences=pl.lit(2))
        library_profile(library(prefill_attention=several), MODEL, 1)
