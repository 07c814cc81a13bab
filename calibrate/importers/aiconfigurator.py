"""Kernel times that NVIDIA's AIConfigurator collected, read from the Parquet tables of its data package.

`SRC` is `SYSTEM/FRAMEWORK/VERSION`, as `h100_sxm/vllm/0.24.0`: of the installed package `aiconfigurator-core`, or
behind the path of a `systems` folder of one's own. Tables of one framework lie apart by family of kernels:
`data/SYSTEM/FAMILY/FRAMEWORK/VERSION/*_perf.parquet`; `SYSTEM.yaml` describes the device.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any

import polars as pl
import yaml

from calibrate.importers.importer import Importer
from calibrate.kernel_library import library_profile
from calibrate.model import ModelShape
from calibrate.profile import KEYS, Profile, Provenance
from ground.errors import UserError

PACKAGE = "aiconfigurator-core==0.12.0"

_ELEMENT_BYTES = 2  # message_size counts elements, and only rows of these types are read
_TWO_BYTES = ("bfloat16", "half")
_TEXT = {
    "gemm_dtype",
    "attn_dtype",
    "kv_cache_dtype",
    "moe_dtype",
    "distribution",
    "allreduce_dtype",
    "nccl_dtype",
    "op_name",
}
_NCCL = {
    "all_gather": "all_gather",
    "all_reduce": "all_reduce_nccl",
    "alltoall": "all_to_all",
    "reduce_scatter": "reduce_scatter",
}


def read(source: str, model: ModelShape | None, tp: int | None) -> Profile:
    """The tables of one system, framework and version, of no model; with `model`, that model's profile.

    Only bfloat16 rows (half in NCCL's) without a sliding window are read; milliseconds become seconds, and elements
    bytes. Of kernels that were timed at the same point the fastest is taken, but Flash Attention 3 before others: it
    is what vLLM runs on Hopper where it was timed. Of experts, the rows whose tokens are spread evenly.

    Raises:
        UserError: the package is not installed, no such system, framework or version, a file that cannot be read or
            lacks a column, `tp` without `model`, or as `library_profile`.
    """
    if tp is not None and model is None:
        raise UserError(f"{source}: tp = {tp} without a model; the tables are of no model, name one by --model")
    systems, system, framework, release = _resolve(source)
    tables = _Tables(systems / "data" / system, framework, release)
    device = _description(systems / f"{system}.yaml")
    held = {
        "gemm": _gemm(tables),
        "prefill_attention": _attention(tables, "context_attention", {"new_tokens": "isl"}),
        # A decode step's cached tokens: those before its one new token.
        "decode_attention": _attention(tables, "generation_attention", {"context": "step"}),
        "expert_mlp": _experts(tables),
        "collective": _collectives(tables, str((device.get("misc") or {}).get("nccl_version", ""))),
    }
    if held["gemm"] is None:
        raise UserError(f"{source}: gemm has no bfloat16 row")
    memory = (device.get("gpu") or {}).get("mem_capacity")
    if not isinstance(memory, int) or isinstance(memory, bool) or memory < 1:
        raise UserError(f"{systems / system}.yaml: key gpu.mem_capacity is {memory!r}; expected a number of bytes")
    origin = "a systems folder" if len(Path(source).parts) > 3 else f"package aiconfigurator-core {_package_version()}"
    library = Profile(
        name=f"{system} {framework} {release}",
        device=tables.device,
        model=None,
        tp=1,
        dtype="bfloat16",
        provenance=Provenance("imported", f"AIConfigurator, {origin}: {system}/{framework}/{release}", "Apache-2.0"),
        tables={name: table for name, table in held.items() if table is not None},
        device_memory=memory,
        versions={framework: release, **tables.others},
    )
    return library if model is None else library_profile(library, model, tp or 1)


IMPORTER = Importer(
    "aiconfigurator",
    "SYSTEM/FRAMEWORK/VERSION of the package aiconfigurator-core, or behind the path of a systems folder",
    read,
)


def read_collectives(folder: Path, framework: str, releases: Sequence[str]) -> pl.DataFrame:
    """The collectives of one system, whose `folder` is `systems/data/SYSTEM`: the table `collective`, and `source`.

    Of a framework's own all-reduce the first release that timed an operation between so many ranks counts.

    Raises:
        UserError: none of the releases timed any.
    """
    parts = []
    for release in releases:
        if (folder / "comm" / framework / release).is_dir():
            table = _collectives(_Tables(folder, framework, release), "")
            if table is not None:
                source = f"AIConfigurator {folder.name}/{framework}/{release}"
                parts.append(table.with_columns(source=pl.lit(source)))
    if not parts:
        raise UserError(f"{folder}: comm/{framework} has none of {', '.join(releases)}")
    kept = parts[0]
    for part in parts[1:]:
        kept = pl.concat([kept, part.join(kept, on=["operation", "ranks"], how="anti")])
    return kept.sort("operation", "ranks", "bytes")


def _installed() -> Path | None:
    """The installed package's `systems` folder; the package is found but not imported."""
    spec = find_spec("aiconfigurator_core")
    places = list(spec.submodule_search_locations or []) if spec else []
    return Path(places[0]) / "systems" if places else None


def _package_version() -> str:
    try:
        return version("aiconfigurator-core")
    except PackageNotFoundError:
        return "of unknown version"


def _resolve(source: str) -> tuple[Path, str, str, str]:
    """The systems folder, and the three parts of the source."""
    parts = Path(source).parts
    if len(parts) < 3:
        installed = _installed()
        found = f"; systems: {', '.join(_folders(installed / 'data'))}" if installed else ""
        raise UserError(f"{source}: expected SYSTEM/FRAMEWORK/VERSION, as h100_sxm/vllm/0.24.0{found}")
    system, framework, release = parts[-3:]
    systems = Path(*parts[:-3]) if len(parts) > 3 else _installed()
    if systems is None:
        raise UserError(f"{source}: package aiconfigurator-core is not installed; pip install {PACKAGE}")
    data = systems / "data"
    if not data.is_dir():
        raise UserError(f"{source}: {data} is not a folder; expected a systems folder of aiconfigurator-core")
    levels = (
        ("system", system, data),
        ("framework", framework, data / system / "gemm"),
        ("version", release, data / system / "gemm" / framework),
    )
    for what, wanted, folder in levels:
        known = _folders(folder)
        if wanted not in known:
            raise UserError(f"{source}: no {what} {wanted} in {folder}; it has {', '.join(known) or 'none'}")
    return systems, system, framework, release


def _folders(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*") if path.is_dir())


def _description(path: Path) -> dict[str, Any]:
    try:
        described = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: not readable ({error.strerror}); expected the system's description") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not a YAML file ({str(error).splitlines()[0]})") from error
    if not isinstance(described, dict):
        raise UserError(f"{path}: holds a {type(described).__name__}; expected the system's description")
    return described


class _Tables:
    """The Parquet files of one system, framework and version; `device` is what they say they were timed on."""

    def __init__(self, folder: Path, framework: str, release: str) -> None:
        self.folder, self.framework, self.release = folder, framework, release
        self.device = ""
        self.others: dict[str, str] = {}  # what was read of another version than that of the source

    def read(
        self, family: str, name: str, columns: tuple[str, ...], defaults: Mapping[str, int] = MappingProxyType({})
    ) -> pl.DataFrame | None:
        """The columns that are asked for, `kernel_source` and `seconds`; None where there is no such file.

        `defaults` are columns that older tables lack, and what their rows were timed with.
        """
        path = self.folder / family / self.framework / self.release / f"{name}_perf.parquet"
        return self.read_file(path, columns, defaults)

    def read_file(
        self, path: Path, columns: tuple[str, ...], defaults: Mapping[str, int] = MappingProxyType({})
    ) -> pl.DataFrame | None:
        if not path.is_file():
            return None
        try:
            table = pl.read_parquet(path)
        except (pl.exceptions.PolarsError, OSError) as error:
            raise UserError(f"{path}: not a readable Parquet file ({str(error).splitlines()[0]})") from error
        missing = {column: pl.lit(value) for column, value in defaults.items() if column not in table.columns}
        table = table.with_columns(**missing)
        for column in (*columns, "device", "kernel_source", "latency"):
            if column not in table.columns:
                raise UserError(f"{path}: column {column} is missing; found {', '.join(table.columns)}")
        for column in (*columns, *defaults, "latency"):
            if column not in _TEXT and not table[column].dtype.is_numeric():
                raise UserError(f"{path}: column {column} is {table[column].dtype}; expected numbers")
        bad = table["latency"].is_null() | ~table["latency"].is_finite() | (table["latency"] <= 0)
        if bad.any():
            row, found = bad.arg_max(), table["latency"].filter(bad)[0]
            raise UserError(f"{path}: row {row}, column latency is {found}; expected a time in milliseconds")
        self.device = self.device or (table["device"][0] if len(table) else "")
        return table.select(*columns, *defaults, "kernel_source", seconds=pl.col("latency") / 1000)

    def read_newest(self, owner: str, wanted: str, name: str, dtype: str, *columns: str) -> pl.DataFrame | None:
        """Two-byte rows of a table of collectives: of the wanted version, or of the newest where it was not timed."""
        folder = self.folder / "comm" / owner
        release = _newest(folder, f"{name}_perf.parquet", wanted)
        if release is None:
            return None
        if owner != self.framework or release != wanted:
            self.others[owner if owner != self.framework else "all_reduce"] = release
        table = self.read_file(folder / release / f"{name}_perf.parquet", (dtype, "num_gpus", "message_size", *columns))
        return None if table is None else table.filter(pl.col(dtype).is_in(_TWO_BYTES))


def _gemm(tables: _Tables) -> pl.DataFrame | None:
    table = tables.read("gemm", "gemm", ("gemm_dtype", "m", "n", "k"))
    return None if table is None else _fastest(table.filter(pl.col("gemm_dtype") == "bfloat16"), "gemm")


def _attention(tables: _Tables, name: str, lengths: dict[str, str]) -> pl.DataFrame | None:
    sizes = {"heads": "num_heads", "kv_heads": "num_key_value_heads", "head_dim": "head_dim", "sequences": "batch_size"}
    kinds = ("attn_dtype", "kv_cache_dtype", "isl", "step")
    table = tables.read("attention", name, (*sizes.values(), *kinds), {"window_size": 0})
    if table is None:
        return None
    plain = (
        (pl.col("attn_dtype") == "bfloat16") & (pl.col("kv_cache_dtype") == "bfloat16") & (pl.col("window_size") == 0)
    )
    # Prefills are of no prefix, decodes of one token.
    plain &= (pl.col("step") == 0) if "new_tokens" in lengths else (pl.col("isl") == 1)
    rows = table.filter(plain).rename({column: key for key, column in (sizes | lengths).items()})
    key = "prefill_attention" if "new_tokens" in lengths else "decode_attention"
    first_choice = pl.col("kernel_source").str.ends_with("fa3")
    preferred = rows.filter(first_choice | ~first_choice.any().over(KEYS[key]))
    return _fastest(preferred, key)


def _experts(tables: _Tables) -> pl.DataFrame | None:
    columns = {
        "hidden": "hidden_size",
        "intermediate": "inter_size",
        "experts": "num_experts",
        "experts_per_token": "topk",
        "tp": "moe_tp_size",
        "ep": "moe_ep_size",
        "tokens": "num_tokens",
    }
    table = tables.read("moe", "moe", (*columns.values(), "moe_dtype", "distribution"))
    if table is None:
        return None
    rows = table.filter((pl.col("moe_dtype") == "bfloat16") & (pl.col("distribution") == "balanced"))
    return _fastest(rows.rename({column: key for key, column in columns.items()}), "expert_mlp")


def _collectives(tables: _Tables, nccl: str) -> pl.DataFrame | None:
    """The framework's own all-reduce, in a CUDA graph (or not said) and out of one, and NCCL's operations.

    NCCL's message_size is that of the whole buffer, also of all_gather, whose ranks each put in their share of it:
    read so, no operation moves more than the links carry. Where a version was not timed the newest is taken, and
    `tables.others` says which.
    """
    size = pl.col("message_size") * _ELEMENT_BYTES
    parts = []
    own = tables.read_newest(tables.framework, tables.release, "custom_allreduce", "allreduce_dtype")
    if own is not None:
        is_eager = pl.col("kernel_source").str.to_lowercase().str.ends_with("eager")
        operation = pl.when(is_eager).then(pl.lit("all_reduce_eager")).otherwise(pl.lit("all_reduce"))
        parts.append(own.with_columns(operation=operation, bytes=size))
    table = tables.read_newest("nccl", nccl, "nccl", "nccl_dtype", "op_name")
    if table is not None:
        operation = pl.col("op_name").replace_strict(_NCCL, default=None, return_dtype=pl.String)
        gathers = pl.col("op_name") == "all_gather"
        input_size = pl.when(gathers).then(size // pl.col("num_gpus")).otherwise(size)
        parts.append(table.with_columns(operation=operation, bytes=input_size))
    if not parts:
        return None
    rows = pl.concat([part.select("operation", "bytes", "seconds", ranks="num_gpus") for part in parts])
    return _fastest(rows.drop_nulls("operation"), "collective")


def _newest(folder: Path, file: str, wanted: str) -> str | None:
    """The version folder that holds the file: the wanted one, else the newest; None where none does."""
    releases = {path.parent.name for path in folder.glob(f"*/{file}")}
    if wanted in releases:
        return wanted
    return max(releases, key=lambda name: [int(number) for number in re.findall(r"\d+", name)], default=None)


def _fastest(rows: pl.DataFrame, kernel_class: str) -> pl.DataFrame | None:
    """Each point of a kernel class once, by its smallest time; None where there is none."""
    keys = KEYS[kernel_class]
    return rows.group_by(keys).agg(pl.col("seconds").min()).sort(keys) if len(rows) else None
