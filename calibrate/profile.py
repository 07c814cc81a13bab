"""A profile: what one device was measured to do with one model's kernels, as a folder on disk.

`profile.json` says what was measured, on what and how well; beside it lies one Parquet table a kernel class.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from calibrate.model import ModelShape, RopeScaling
from ground.errors import UserError
from ground.folder import new_folder

SCHEMA_VERSION = 1

# Kernel class → what identifies a point. Every table also holds `seconds` (median) of ONE call, and where it was
# measured `p10`, `p90` (seconds) and `samples`. kv_* are tokens already cached, per sequence.
KEYS: dict[str, tuple[str, ...]] = {
    "dense": ("layer", "tokens"),
    "per_sequence": ("layer", "sequences"),
    "attention": ("prefill_chunk", "kv_prefill", "n_decode", "kv_decode"),
    # What a pruned model runs beside: token-wise kernels, and attention to what is kept in another form.
    "pruned": ("layer", "tokens"),
    "pruned_attention": ("kind", "prefill_chunk", "kv_prefill", "n_decode", "kv_decode"),
    "copy": ("direction", "memory", "bytes"),
    "overhead": ("sequences", "tokens"),
    "launch": ("kernels",),
    "graph": ("phase", "sequences"),
    # `watts` drawn in a state (idle, prefill, decode) by a batch of so many sequences; `seconds` is one step's.
    "power": ("state", "sequences"),
    # One layer's experts on one rank, of whose experts `activated_experts` get a token.
    "moe": ("tokens", "activated_experts"),
    # Decode batches of which `n_long` contexts are kv_long and the others kv_short, alone or beside one prefill. Only
    # the ratio of `seconds` to `equal_seconds`, of a batch all of whose contexts are the mean, is used.
    "skew": ("prefill_chunk", "kv_prefill", "n_decode", "n_long", "kv_short", "kv_long"),
    # Between ranks; `bytes` is the size of one rank's input.
    "collective": ("operation", "ranks", "bytes"),
    # Of no model: products [m, k] × [k, n], attention by heads, experts by shape (see `calibrate.kernel_library`).
    "gemm": ("m", "n", "k"),
    "prefill_attention": ("heads", "kv_heads", "head_dim", "sequences", "new_tokens"),
    "decode_attention": ("heads", "kv_heads", "head_dim", "sequences", "context"),
    "expert_mlp": ("hidden", "intermediate", "experts", "experts_per_token", "tp", "ep", "tokens"),
}
_TEXT_KEYS = {"kind", "layer", "direction", "memory", "phase", "operation", "state"}

_BUNDLED = Path(__file__).parent / "profiles"


@dataclass(frozen=True)
class Provenance:
    """Where the numbers come from: `source` is "measured", "imported" or "datasheet"; `note` says it in words."""

    source: str
    note: str
    licence: str


@dataclass
class Profile:
    """One device × model × tensor parallelism. `tables` holds those of `KEYS` that are known.

    `model` is None where the kernels are of no model in particular; `load_profile` then looks one up in them.

    `errors` is kernel class → {"points", "fit", "held_out_points", "held_out_median", "held_out_p90"}: absolute
    relative errors; "fit" is the median error of a grid point interpolated from its neighbours, and the class "step"
    stands for whole decoder steps. `held_out` lists every held-out point: class, point, measured, predicted.
    """

    name: str
    device: str
    model: ModelShape | None
    tp: int
    dtype: str
    provenance: Provenance
    tables: dict[str, pl.DataFrame]
    device_memory: int | None = None  # bytes; None on a CPU
    driver: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    date: str = ""
    threads: int | None = None
    block_size: int | None = None
    grid: dict[str, Any] = field(default_factory=dict)
    errors: dict[str, dict[str, float]] = field(default_factory=dict)
    held_out: pl.DataFrame | None = None

    @property
    def is_cpu(self) -> bool:
        return self.device_memory is None

    @property
    def measured_on_cpu(self) -> bool:
        """Not so of a GPU whose imported figures leave the memory open; a GPU's measured ones name threads too."""
        return self.is_cpu and self.threads is not None

    @property
    def shape(self) -> ModelShape:
        """The model.

        Raises:
            UserError: the profile is of none.
        """
        if self.model is None:
            raise UserError(f"profile {self.name} is of no model; expected one that was measured or looked up for one")
        return self.model

    def table(self, kernel_class: str) -> pl.DataFrame:
        """The table of a kernel class.

        Raises:
            UserError: the profile does not hold it.
        """
        if kernel_class not in self.tables:
            held = ", ".join(self.tables) or "none"
            of = f" for {self.model.name}" if self.model else ""
            raise UserError(f"profile {self.name}: no kernel class {kernel_class}{of}; it holds {held}")
        return self.tables[kernel_class]

    def save(self, folder: Path, *, force: bool = False) -> None:
        """Write the profile as a folder, whole or not at all.

        Raises:
            UserError: the folder exists and is not empty (without `force`), or cannot be written.
        """
        meta: dict[str, Any] = {"schema_version": SCHEMA_VERSION}
        for key in _META:
            meta[key] = getattr(self, key)
        meta["model"] = asdict(self.model) if self.model else None
        meta["provenance"] = asdict(self.provenance)
        with new_folder(folder, force=force) as partial:
            (partial / "profile.json").write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")
            for kernel_class, table in self.tables.items():
                table.write_parquet(partial / f"{kernel_class}.parquet")
            if self.held_out is not None:
                self.held_out.write_parquet(partial / "held_out.parquet")

    @classmethod
    def load(cls, path_or_name: str | Path) -> Profile:
        """Read a profile's folder, or a bundled profile by name.

        Raises:
            UserError: no such profile, another schema version, or a file or column that is missing or impossible.
        """
        folder = Path(path_or_name)
        if not folder.is_dir() and (_BUNDLED / path_or_name / "profile.json").is_file():
            folder = _BUNDLED / path_or_name
        path = folder / "profile.json"
        if not path.is_file():
            raise UserError(
                f"{path_or_name}: no such profile; expected a folder with a profile.json"
                + (f" or one of {', '.join(bundled_profiles())}" if bundled_profiles() else "")
            )
        try:
            meta = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"{path}: not a JSON file ({error})") from error
        version = meta.get("schema_version") if isinstance(meta, dict) else None
        if version != SCHEMA_VERSION:
            raise UserError(f"{path}: key schema_version is {version!r}; expected {SCHEMA_VERSION}")
        try:
            known = {key: meta[key] for key in _META}
            shape, provenance = _model_shape(meta["model"]), Provenance(**meta["provenance"])
        except KeyError as error:
            raise UserError(f"{path}: key {error.args[0]} is missing") from error
        except TypeError as error:
            raise UserError(f"{path}: keys model and provenance are not those of this version ({error})") from error
        tables = {
            name: _read_table(file, keys)
            for name, keys in KEYS.items()
            if (file := folder / f"{name}.parquet").is_file()
        }
        held_out = folder / "held_out.parquet"
        return cls(
            **known,
            model=shape,
            provenance=provenance,
            tables=tables,
            held_out=_read_parquet(held_out) if held_out.is_file() else None,
        )


_META = (
    "name",
    "device",
    "tp",
    "dtype",
    "device_memory",
    "driver",
    "versions",
    "date",
    "threads",
    "block_size",
    "grid",
    "errors",
)


def bundled_profiles() -> list[str]:
    """Names that `Profile.load` knows without a folder."""
    return sorted(path.parent.name for path in _BUNDLED.glob("*/profile.json"))


def load_profile(spec: str, model: ModelShape, tp: int, base_dir: Path) -> Profile:
    """A profile by folder (relative to `base_dir`), by bundled name, or `datasheet:DEVICE`.

    One of no model is looked up for `model`.

    Raises:
        UserError: as `Profile.load`, or a datasheet that is not known.
    """
    if spec.startswith("datasheet:"):
        from calibrate.datasheet import datasheet_profile

        return datasheet_profile(spec.removeprefix("datasheet:"), model, tp)
    folder = base_dir / spec
    profile = Profile.load(folder if folder.is_dir() else spec)
    if profile.model is None:
        from calibrate.kernel_library import library_profile

        return library_profile(profile, model, tp)
    return profile


def _model_shape(model: dict[str, Any] | None) -> ModelShape | None:
    if model is None:
        return None
    scaling = model["rope_scaling"]
    return ModelShape(**model | {"rope_scaling": None if scaling is None else RopeScaling(**scaling)})


def _read_parquet(path: Path) -> pl.DataFrame:
    try:
        return pl.read_parquet(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path}: not a readable Parquet file ({reason})") from error


def _read_table(path: Path, keys: Sequence[str]) -> pl.DataFrame:
    table = _read_parquet(path)
    for column in (*keys, "seconds"):
        if column not in table.columns:
            raise UserError(f"{path}: column {column} is missing; found {', '.join(table.columns)}")
        is_text = column in _TEXT_KEYS
        if (table[column].dtype == pl.String) != is_text or not (is_text or table[column].dtype.is_numeric()):
            expected = "text" if is_text else "numbers"
            raise UserError(f"{path}: column {column} is {table[column].dtype}; expected {expected}")
        if table[column].null_count():
            row = table[column].is_null().arg_max()
            raise UserError(f"{path}: row {row}, column {column} is empty")
    # Only the host's overhead may be negative: it is what a step takes beyond the kernels timed one by one.
    bad = ~table["seconds"].is_finite()
    if path.stem != "overhead":
        bad = bad | (table["seconds"] < 0)
    if bad.any():
        row, found = bad.arg_max(), table["seconds"].filter(bad)[0]
        raise UserError(f"{path}: row {row}, column seconds is {found}; expected a time in seconds")
    if table.select(keys).is_duplicated().any():
        row = table.select(keys).is_duplicated().arg_max()
        raise UserError(f"{path}: row {row} is not the only one with its {', '.join(keys)}")
    return table
