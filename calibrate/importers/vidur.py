"""Kernel times in the form of Vidur's profiler (microsoft/vidur, data/profiling/compute/DEVICE/MODEL).

A folder with `mlp.csv` (a layer's token-wise kernels) and `attention.csv`; `all_reduce.csv` and `send_recv.csv`
(data/profiling/network/NODE) are read where they lie beside them. Times are milliseconds.
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from calibrate.gemm_table import GemmTable
from calibrate.importers.csv_table import check_numbers, read_csv
from calibrate.importers.importer import Importer
from calibrate.importers.sarathi_attention import attention_rows
from calibrate.model import ModelShape
from calibrate.profile import Profile, Provenance
from calibrate.roofline import layer_work
from ground.errors import UserError

# Vidur's operation → the layer that it is here. Its norms do not add the residual, which vLLM's fused norm does.
_LAYERS = {
    "emb": "embedding",
    "attn_pre_proj": "qkv_proj",
    "attn_rope": "rotary_emb",
    "attn_post_proj": "o_proj",
    "mlp_up_proj": "gate_up_proj",
    "mlp_act": "act_fn",
    "mlp_down_proj": "down_proj",
}
_NORMS = ("input_layernorm", "post_attention_layernorm", "add")
_SIZES = {"n_embd": "hidden", "n_head": "heads", "n_kv_head": "kv_heads", "n_expanded_embd": "intermediate"}
_ATTENTION_SIZES = {"n_embd": "hidden", "n_q_head": "heads", "n_kv_head": "kv_heads"}
_FOLDER = "a folder with mlp.csv and attention.csv"
_VOCAB_PADDING = 1024  # Vidur's vocabularies are padded: 32768 where the model says 32000

# What Vidur simulates by these names (vidur/config/device_sku_config.py), in nominal bytes.
_MEMORY = {"a40": 45 * 2**30, "a100": 80 * 2**30, "h100": 80 * 2**30}


def read(source: str, model: ModelShape | None, tp: int | None) -> Profile:
    """The profile of one rank of `model` at `tp` (the only one measured, if None), from a folder of Vidur's tables.

    Vidur times no lm_head, sampler or final norm: the first is borrowed from the measured products by efficiency,
    the second is its bytes at their bandwidth, the third is a layer's own norm; `grid` says so.

    Raises:
        UserError: no model given, a file or column that is missing, a size that is not the model's, a `tp` that was
            not measured, an empty or impossible time, or a model with experts, norms of queries or 32-bit weights.
    """
    folder = Path(source)
    if model is None:
        raise UserError(f"{source}: Vidur's tables do not name their model; give it by --model")
    if model.experts or model.qk_norm or model.dtype_bytes != 2:
        raise UserError(f"{source}: {model.name} is not a dense 16-bit model without QK norms; Vidur times no other")
    path = folder / "mlp.csv"
    mlp = _of_model(read_csv(path, _FOLDER), path, model, _SIZES)
    tp = _chosen(mlp, path, tp)
    tokens = _by_tokens(mlp, path, tp)
    attention_path = folder / "attention.csv"
    attention = _of_model(read_csv(attention_path, _FOLDER), attention_path, model, _ATTENTION_SIZES)
    borrowed: dict[str, str] = {}
    assumed = {"final_layernorm": "not timed by Vidur: taken as the layer's own norm"}
    tables = {
        "dense": _dense(tokens),
        "per_sequence": _per_sequence(tokens, model, tp, borrowed, assumed),
        "attention": attention_rows(attention, tp, attention_path),
    }
    if (collective := _collectives(folder)) is not None:
        tables["collective"] = collective
    device = next((part for part in reversed(folder.resolve().parts) if part.lower() in _MEMORY), "")
    if device:
        assumed["device_memory"] = f"not in the tables: the nominal memory of {device}"
    else:
        assumed["device_memory"] = f"not in the tables, and no folder on the way is named {', '.join(_MEMORY)}"
    return Profile(
        name=f"vidur {device or folder.name} {model.name} tp{tp}",
        device=device or folder.name,
        model=model,
        tp=tp,
        dtype="float16",
        provenance=Provenance("imported", f"Vidur's profile {source}; {model.name} at tp = {tp}", "MIT"),
        tables=tables,
        device_memory=_MEMORY.get(device.lower()),
        grid={"borrowed": borrowed, "assumed": assumed},
    )


IMPORTER = Importer("vidur", "folder with mlp.csv and attention.csv of Vidur's profiler; needs --model", read)


def _column(table: pl.DataFrame, path: Path, column: str) -> pl.Series:
    check_numbers(table, path, [column])
    return table[column]


def _time(table: pl.DataFrame, path: Path, operation: str) -> pl.Series:
    times = _column(table, path, f"time_stats.{operation}.median").cast(pl.Float64)
    bad = times.is_null() | ~times.is_finite() | (times < 0)
    if bad.any():
        row, found = bad.arg_max(), times.filter(bad)[0]
        raise UserError(f"{path}: row {row}, column {times.name} is {found}; expected a time in milliseconds")
    return times


def _of_model(table: pl.DataFrame, path: Path, model: ModelShape, sizes: dict[str, str]) -> pl.DataFrame:
    """The table, if every row is of the model's sizes."""
    for column, name in sizes.items():
        wanted = getattr(model, name)
        found = _column(table, path, column).unique().sort().to_list()
        if found != [wanted]:
            listed = ", ".join(str(value) for value in found) or "no row"
            raise UserError(f"{path}: column {column} is {listed}; {model.name} has {name} {wanted}")
    if "vocab_size" in table.columns:
        for value in _column(table, path, "vocab_size").unique():
            if value is None or not model.vocab <= value < model.vocab + _VOCAB_PADDING:
                raise UserError(f"{path}: column vocab_size is {value}; {model.name} has vocab {model.vocab}")
    if "use_gated_mlp" in table.columns and table["use_gated_mlp"].unique().to_list() != [True]:
        raise UserError(f"{path}: column use_gated_mlp is not True in every row; {model.name} has a gated MLP")
    return table


def _chosen(table: pl.DataFrame, path: Path, tp: int | None) -> int:
    measured = _column(table, path, "num_tensor_parallel_workers").unique().sort().to_list()
    if tp is None and len(measured) == 1:
        return int(measured[0])
    if tp is None or tp not in measured:
        listed = ", ".join(str(n) for n in measured)
        wanted = f"no row of {tp}" if tp is not None else "no --tp to choose one"
        raise UserError(f"{path}: column num_tensor_parallel_workers has {listed}; {wanted}")
    return tp


def _by_tokens(table: pl.DataFrame, path: Path, tp: int) -> pl.DataFrame:
    """Of one tp, one row a number of tokens: num_tokens and the median seconds of each operation."""
    _column(table, path, "num_tokens")
    for operation in (*_LAYERS, *_NORMS):
        _time(table, path, operation)
    seconds = [(pl.col(f"time_stats.{name}.median").median() / 1000).alias(name) for name in (*_LAYERS, *_NORMS)]
    rows = table.filter(pl.col("num_tensor_parallel_workers") == tp)
    return rows.group_by("num_tokens").agg(seconds).sort("num_tokens")


def _dense(tokens: pl.DataFrame) -> pl.DataFrame:
    # Of the two residual additions a layer Vidur times one, and its predictor counts one: half goes to each norm.
    norm = (pl.col("input_layernorm") + pl.col("post_attention_layernorm") + pl.col("add")) / 2
    layers = {layer: pl.col(operation) for operation, layer in _LAYERS.items()}
    parts = [
        tokens.select(layer=pl.lit(layer), tokens="num_tokens", seconds=seconds)
        for layer, seconds in (layers | {"layernorm": norm, "final_layernorm": norm}).items()
    ]
    return pl.concat(parts)


def _per_sequence(
    tokens: pl.DataFrame, model: ModelShape, tp: int, borrowed: dict[str, str], assumed: dict[str, str]
) -> pl.DataFrame:
    linears = {linear.name: linear for linear in model.linears(tp)}
    products = [
        tokens.select(
            m="num_tokens", n=pl.lit(linears[layer].outputs), k=pl.lit(linears[layer].inputs), seconds=operation
        )
        for operation, layer in _LAYERS.items()
        if layer in linears
    ]
    gemm = GemmTable(pl.concat(products).filter(pl.col("seconds") > 0))
    head = linears["lm_head"]
    product = gemm.product(head.outputs, head.inputs)
    if product.borrowed_from:
        sources = ", ".join(f"{n}×{k}" for n, k in product.borrowed_from)
        borrowed["lm_head"] = f"{head.outputs}×{head.inputs} from {sources}"
    assumed["sampler"] = f"not timed by Vidur: its bytes at {gemm.bandwidth:.4g} bytes/s"
    rank = model.shard(tp)
    rows = [("lm_head", m, seconds) for m, seconds in zip(product.ms, product.seconds, strict=True)]
    rows += [("sampler", m, layer_work(rank, "sampler", m).bytes / gemm.bandwidth) for m in product.ms]
    return pl.DataFrame(rows, schema={"layer": pl.String, "sequences": pl.Int64, "seconds": pl.Float64}, orient="row")


def _collectives(folder: Path) -> pl.DataFrame | None:
    """Collectives among the devices of one node; `size` is in bytes."""
    parts = []
    for operation in ("all_reduce", "send_recv"):
        path = folder / f"{operation}.csv"
        if not path.is_file():
            continue
        table = read_csv(path)
        for column in ("num_workers", "devices_per_node", "size"):
            _column(table, path, column)
        parts.append(
            table.with_columns(seconds=_time(table, path, operation) / 1000)
            .filter(pl.col("num_workers") == pl.col("devices_per_node"))
            .group_by(ranks="num_workers", bytes="size")
            .agg(pl.col("seconds").median())
            .select(pl.lit(operation).alias("operation"), "ranks", "bytes", "seconds")
        )
    return pl.concat(parts).sort("operation", "ranks", "bytes") if parts else None
