"""A trace file as it lies on disk: decompressed, cut into rows and columns, nothing interpreted yet."""

from __future__ import annotations

import gzip
import io
import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NoReturn

import polars as pl

from ground.errors import UserError

Kind = Literal["csv", "jsonl", "parquet"]

_KINDS: dict[str, Kind] = {".csv": "csv", ".tsv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}


@dataclass(frozen=True)
class RawTable:
    """Rows of a file. CSV cells are all strings, so that a reader can name the cell it cannot read.

    Row i of `frame` is the i-th data row that is not blank, counted from 0: the `source_row` of the canonical table.
    """

    path: Path
    kind: Kind
    frame: pl.DataFrame
    metadata: dict[str, str]  # key-value metadata of a Parquet file, else empty

    @property
    def fields(self) -> frozenset[str]:
        return frozenset(self.frame.columns)


def open_raw(path: Path) -> RawTable:
    """Read a .csv, .tsv, .jsonl, .ndjson or .parquet file, the text ones plain, .gz or .zst.

    Raises:
        UserError: the file is missing, empty, broken, or of a kind that is not known.
    """
    inner = path.with_suffix("") if path.suffix in (".gz", ".zst") else path
    kind = _KINDS.get(inner.suffix.lower())
    if kind is None:
        raise UserError(
            f"{path}: found suffix {inner.suffix!r}, expected one of {', '.join(_KINDS)} (or those + .gz/.zst)"
        )
    data = _decompressed(path)
    if not data.strip():
        raise UserError(f"{path}: is empty, expected at least one row")
    metadata: dict[str, str] = {}
    if kind == "csv":
        frame = _csv(path, data, separator="\t" if inner.suffix.lower() == ".tsv" else ",")
    elif kind == "jsonl":
        frame = _jsonl(path, data)
    else:
        frame, metadata = _parquet(path, data)
    return RawTable(path, kind, frame, metadata)


def _decompressed(path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    if path.suffix == ".gz":
        try:
            return gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise UserError(f"{path}: not a whole gzip file ({error})") from error
    if path.suffix == ".zst":
        import zstandard

        try:
            with zstandard.ZstdDecompressor().stream_reader(data, read_across_frames=True) as stream:
                content: bytes = stream.read()
                return content
        except zstandard.ZstdError as error:
            raise UserError(f"{path}: not a whole zstd file ({error})") from error
    return data


def _csv(path: Path, data: bytes, separator: str) -> pl.DataFrame:
    try:
        frame = pl.read_csv(io.BytesIO(data), infer_schema=False, separator=separator)
    except pl.exceptions.PolarsError as error:
        raise UserError(f"{path}: not a CSV table ({_first_line(error)})") from error
    frame = frame.rename({name: name.strip().removeprefix("\ufeff") for name in frame.columns})
    return frame.filter(~pl.all_horizontal(pl.all().is_null()))  # blank lines


def _jsonl(path: Path, data: bytes) -> pl.DataFrame:
    try:
        return pl.read_ndjson(io.BytesIO(data), infer_schema_length=None)
    except pl.exceptions.PolarsError as error:
        _name_bad_line(path, data)
        raise UserError(f"{path}: a key changes its type between rows ({_first_line(error)})") from error


def _name_bad_line(path: Path, data: bytes) -> None:
    """Raise for the first line that is not a JSON object, which polars does not name."""

    def reject(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is not JSON")

    for number, line in enumerate(data.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line, parse_constant=reject)
        except ValueError as error:
            raise UserError(f"{path}: line {number}: {error}; expected one JSON object a line") from error
        if not isinstance(row, dict):
            raise UserError(f"{path}: line {number}: found a JSON {type(row).__name__}, expected an object")


def _parquet(path: Path, data: bytes) -> tuple[pl.DataFrame, dict[str, str]]:
    try:
        return pl.read_parquet(io.BytesIO(data)), dict(pl.read_parquet_metadata(io.BytesIO(data)))
    except (pl.exceptions.PolarsError, OSError) as error:
        raise UserError(f"{path}: not a Parquet file ({_first_line(error)})") from error


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
