"""LLMServingSim's kernel profiles: vLLM's layers timed by CUDA kernel, and the older form of its first version.

The form of its version 2 is a folder `…/HARDWARE/ORG/MODEL/VARIANT/tpN` of CSV files beside a `meta.yaml`; times are
microseconds of one layer instance. The older form is a folder with `layers.csv` (nanoseconds) and `attention.csv`
(Sarathi's columns).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import yaml

from calibrate.datasheet import device_like
from calibrate.importers.csv_table import check_numbers, read_csv
from calibrate.importers.importer import Importer
from calibrate.importers.sarathi_attention import attention_rows
from calibrate.model import ModelShape, bundled_models, load_model
from calibrate.profile import KEYS, Profile, Provenance
from calibrate.skew_models import judge
from ground.errors import UserError

_LICENCE = "MIT (c) 2024 CASYS Lab at KAIST"
_KV = ("prefill_chunk", "kv_prefill", "n_decode", "kv_decode")

# Our layer → those of the older form, which ran unfused kernels of Hugging Face's model one by one.
_OLDER = {
    "embedding": ("embedding",),
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "rotary_emb": ("rope",),
    "o_proj": ("o_proj",),
    "gate_up_proj": ("gate_proj", "up_proj"),
    "act_fn": ("act_fn",),
    "down_proj": ("down_proj",),
    "final_layernorm": ("final_layernorm",),
    "lm_head": ("lm_head",),
}


def read(source: str, model: ModelShape | None, tp: int | None) -> Profile:
    """The profile of one rank. `source` is the folder of one `tp`, or of a variant that holds several.

    Where no model is given it is the file `models/ORG/NAME.json` beside the `profiles` folder, or a bundled model of
    that name. Whether unequal decode batches are used (`skew.csv`) is what `meta.yaml` says of `skew_profile.enabled`;
    then both models of skew are judged on them, and the better is chosen.

    Raises:
        UserError: no such folder, a file or column that is missing, several `tp` and none chosen, a model that is not
            known.
    """
    folder = Path(source).resolve()
    if not folder.is_dir():
        raise UserError(f"{source}: no such folder; expected a profile of LLMServingSim")
    if (folder / "layers.csv").is_file():
        return _read_older(folder, model, tp)
    folder = _of_tp(folder, tp)
    meta = _meta(folder.parent / "meta.yaml")
    shape = model or _model_of(folder, str(meta.get("model", "")))
    ranks = int(folder.name.removeprefix("tp"))
    tables = {
        "dense": _table(folder / "dense.csv", ("layer", "tokens")),
        "per_sequence": _table(folder / "per_sequence.csv", ("layer", "sequences")),
        "attention": _table(folder / "attention.csv", _KV),
    }
    grid: dict[str, Any] = {"attention": meta.get("attention_grid", {})}
    if shape.experts:
        # Experts are timed whole, for one rank of an expert-parallel engine, and so beside tp1 alone.
        beside = folder if (folder / "moe.csv").is_file() else folder.parent / "tp1"
        tables["moe"] = _table(beside / "moe.csv", ("tokens", "activated_experts"))
    if _mapping(meta, "skew_profile").get("enabled"):
        tables["skew"] = _skew(folder / "skew.csv")
    profile = _profile(folder, meta, shape, ranks, tables, grid)
    if "skew" in tables:
        _choose_skew(profile)
    return profile


IMPORTER = Importer(
    "llmservingsim",
    "folder of LLMServingSim's profiler: HARDWARE/ORG/MODEL/VARIANT[/tpN], or one with layers.csv and attention.csv",
    read,
)


def _profile(
    folder: Path,
    meta: dict[str, Any],
    model: ModelShape,
    tp: int,
    tables: dict[str, pl.DataFrame],
    grid: dict[str, Any],
) -> Profile:
    device = str(meta.get("gpu") or meta.get("hardware") or "unknown GPU")
    known = device_like(device)
    return Profile(
        name=f"{meta.get('hardware', device)} {model.name} tp{tp}",
        device=device,
        model=model,
        tp=tp,
        dtype="bfloat16",
        provenance=Provenance("imported", f"LLMServingSim's profiler, {folder.name} of {model.name}", _LICENCE),
        tables=tables,
        device_memory=None if known is None else known.memory,
        versions={key: str(meta[f"{key}_version"]) for key in ("vllm", "cuda", "profiler") if f"{key}_version" in meta},
        date=str(meta.get("profiled_at", ""))[:10],
        block_size=_mapping(meta, "engine_effective").get("block_size"),
        grid=grid,
    )


def _choose_skew(profile: Profile) -> None:
    """Keep the errors of every model of skew, and name the one whose 90th percentile is the least."""
    errors = judge(profile)
    for name, error in errors.items():
        profile.errors[f"skew.{name}"] = {
            "held_out_points": error["points"],
            "held_out_median": error["median"],
            "held_out_p90": error["p90"],
        }
    best = min(errors, key=lambda name: errors[name]["p90"])
    if best != "mean_context":
        profile.grid["skew_model"] = best


def _of_tp(folder: Path, tp: int | None) -> Path:
    if (folder / "dense.csv").is_file():
        if not folder.name.removeprefix("tp").isdigit():
            raise UserError(f"{folder}: holds dense.csv; expected a folder named tp1, tp2, … by its tensor parallelism")
        if tp is not None and folder.name != f"tp{tp}":
            raise UserError(f"{folder}: is not of tp = {tp}; expected a folder tp{tp}, or the one that holds it")
        return folder
    held = sorted(
        path.name
        for path in folder.glob("tp*")
        if path.name.removeprefix("tp").isdigit() and (path / "dense.csv").is_file()
    )
    if not held:
        raise UserError(f"{folder}: holds neither dense.csv nor layers.csv, nor folders tp1, tp2, … with a dense.csv")
    wanted = f"tp{tp}" if tp is not None else held[0] if len(held) == 1 else None
    if wanted not in held:
        raise UserError(f"{folder}: has {', '.join(held)}; choose one by --tp")
    return folder / wanted


def _meta(path: Path) -> dict[str, Any]:
    try:
        meta = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path}: not YAML ({' '.join(str(error).split())})") from error
    if meta is None:
        return {}
    if not isinstance(meta, dict):
        raise UserError(f"{path}: found {type(meta).__name__}, expected a mapping of keys")
    return meta


def _mapping(meta: dict[str, Any], key: str) -> dict[str, Any]:
    """A mapping inside the meta data; empty where there is none."""
    value = meta.get(key)
    return value if isinstance(value, dict) else {}


def _model_of(folder: Path, name: str) -> ModelShape:
    short = name.rpartition("/")[2]
    for parent in folder.parents:
        path = parent / "models" / f"{name}.json"
        if name and path.is_file():
            return load_model(path)
    if short in bundled_models():
        return load_model(short)
    raise UserError(f"{folder}: is of model {name or 'unknown'}, which is not bundled; give its config.json by --model")


def _times(table: pl.DataFrame, path: Path, column: str, per_second: float) -> pl.Expr:
    """A column of times as seconds."""
    check_numbers(table, path, [column])
    bad = table[column].is_null() | ~table[column].cast(pl.Float64).is_finite() | (table[column] < 0)
    if bad.any():
        row = int(bad.arg_max() or 0)
        raise UserError(f"{path}: row {row}, column {column} is {table[column][row]}; expected a time")
    return pl.col(column) / per_second


def _check_keys(table: pl.DataFrame, path: Path, columns: list[str]) -> None:
    check_numbers(table, path, columns)
    for column in columns:
        if table[column].null_count():
            raise UserError(f"{path}: row {table[column].is_null().arg_max()}, column {column} is empty")


def _table(path: Path, keys: tuple[str, ...]) -> pl.DataFrame:
    table = read_csv(path)
    _check_keys(table, path, [key for key in keys if key != "layer"])
    if "layer" in keys and "layer" not in table.columns:
        raise UserError(f"{path}: column layer is missing; found {', '.join(table.columns)}")
    # A point measured by more than one pass of the profiler gets the median.
    return (
        table.select(*keys, seconds=_times(table, path, "time_us", 1e6))
        .group_by(keys)
        .agg(pl.col("seconds").median())
        .sort(keys)
    )


def _skew(path: Path) -> pl.DataFrame:
    """Its times are sums over the profiler's iterations, so only their ratio means something."""
    table = read_csv(path)
    _check_keys(table, path, ["n", "nb", "pc", "kp", "kvs", "kv_big"])
    keys = KEYS["skew"]
    return (
        table.select(
            pl.col("pc").alias("prefill_chunk"),
            pl.col("kp").alias("kv_prefill"),
            pl.col("n").alias("n_decode"),
            pl.col("nb").alias("n_long"),
            pl.col("kvs").alias("kv_short"),
            pl.col("kv_big").alias("kv_long"),
            seconds=_times(table, path, "t_skew_us", 1e6),
            equal_seconds=_times(table, path, "t_mean_us", 1e6),
        )
        .group_by(keys)
        .agg(pl.col("seconds", "equal_seconds").median())
        .sort(keys)
    )


def _read_older(folder: Path, model: ModelShape | None, tp: int | None) -> Profile:
    """`layers.csv`: layer_name, input (tokens), tp_size, latency(ns). The sampler was not timed, nor is the device
    named: it is that of the folder above, if a device goes by its name."""
    path = folder / "layers.csv"
    table = read_csv(path)
    _check_keys(table, path, ["input", "tp_size"])
    if "layer_name" not in table.columns:
        raise UserError(f"{path}: column layer_name is missing; found {', '.join(table.columns)}")
    if model is None:
        config = folder.parent / "model.json"
        if not config.is_file():
            raise UserError(f"{folder}: names no model; give its config.json by --model")
        model = load_model(config)
    degrees = table["tp_size"].unique().sort().to_list()
    ranks = tp if tp is not None or len(degrees) > 1 else int(degrees[0])
    if ranks is None or ranks not in degrees:
        raise UserError(f"{path}: column tp_size has {', '.join(map(str, degrees))}; choose one by --tp")
    rows = (
        table.filter(pl.col("tp_size") == ranks)
        .select("layer_name", tokens="input", seconds=_times(table, path, "latency(ns)", 1e9))
        .group_by("layer_name", "tokens")
        .agg(pl.col("seconds").median())
    )

    def summed(layer: str, parts: tuple[str, ...], share: float = 1.0) -> pl.DataFrame:
        found = rows.filter(pl.col("layer_name").is_in(parts))
        if found["layer_name"].n_unique() < len(parts):
            raise UserError(f"{path}: column layer_name lacks one of {', '.join(parts)}")
        of_tokens = found.group_by("tokens").agg(pl.col("seconds").sum() * share, pl.len().alias("parts"))
        total = of_tokens.filter(pl.col("parts") == len(parts))  # a sum of some of its parts is none of the layer
        return total.select(pl.lit(layer).alias("layer"), "tokens", "seconds")

    dense = [summed(layer, parts) for layer, parts in _OLDER.items() if layer != "lm_head"]
    dense.append(summed("layernorm", ("input_layernorm", "post_layernorm"), 0.5))
    lm_head = summed("lm_head", _OLDER["lm_head"]).rename({"tokens": "sequences"})
    sampler = lm_head.with_columns(layer=pl.lit("sampler"), seconds=pl.lit(0.0))
    attention = folder / "attention.csv"
    return _profile(
        folder,
        {"hardware": folder.resolve().parent.name.split("-")[0].upper()},
        model,
        ranks,
        {
            "dense": pl.concat(dense).sort("layer", "tokens"),
            "per_sequence": pl.concat([lm_head, sampler]).sort("layer", "sequences"),
            "attention": attention_rows(read_csv(attention), ranks, attention, counts_all_keys=True),
        },
        {"assumed": {"sampler": "was not timed: taken to cost nothing"}},
    )
