"""A trace file as it lies on disk: decompressed, cut into rows and columns, nothing interpreted yet."""

from __future__ import annotations

import gzip
import io
import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

import polars as pl

from ground.errors import UserError

Kind = Literal["csv", "jsonl", "json", "parquet"]

_KINDS: dict[str, Kind] = {
    ".csv": "csv",
    ".tsv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".parquet": "parquet",
}
# The file that a folder's trace begins with, where it has companions that say the rest.
_LEADING = ("requests.parquet", "0_trace.jsonl", "0_trace.jsonl.gz", "0_trace.jsonl.zst")


@dataclass(frozen=True)
class RawTable:
    """Rows of a file. CSV cells are all strings, so that a reader can name the cell it cannot read.

    Row i of `frame` is the i-th data row that is not blank, counted from 0: the `source_row` of the canonical table.
    A JSON file is a document and no table: `frame` then has the keys of the first document and no rows, and `files`
    are the documents, opened one at a time with `json_document`.
    """

    path: Path
    kind: Kind
    frame: pl.DataFrame
    metadata: dict[str, str]  # key-value metadata of a Parquet file, else empty
    files: tuple[Path, ...] = ()

    @property
    def fields(self) -> frozenset[str]:
        return frozenset(self.frame.columns)


def open_raw(path: Path) -> RawTable:
    """Read a .csv, .tsv, .jsonl, .ndjson, .json or .parquet file, the text ones plain, .gz or .zst.

    A folder stands for its `requests.parquet` or `0_trace.jsonl`, or else for all its .json files, by name.

    Raises:
        UserError: the file is missing, empty, broken, or of a kind that is not known.
    """
    if path.is_dir():
        return _open_folder(path)
    inner = path.with_suffix("") if path.suffix in (".gz", ".zst") else path
    kind = _KINDS.get(inner.suffix.lower())
    if kind is None:
        raise UserError(
            f"{path}: found suffix {inner.suffix!r}, expected one of {', '.join(_KINDS)} (or those + .gz/.zst)"
        )
    if kind == "json":
        return _json(path, (path,))
    data = decompressed(path)
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


def _open_folder(folder: Path) -> RawTable:
    for name in _LEADING:
        if (folder / name).exists():
            return open_raw(folder / name)
    documents = tuple(sorted(path for path in folder.iterdir() if ".json" in path.suffixes[-2:]))
    if not documents:
        raise UserError(f"{folder}: found a folder without {_LEADING[0]}, {_LEADING[1]} or any .json file")
    return _json(folder, documents)


def _json(path: Path, files: tuple[Path, ...]) -> RawTable:
    return RawTable(path, "json", pl.DataFrame(schema=dict.fromkeys(json_document(files[0]), pl.Null())), {}, files)


def json_document(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        UserError: the file cannot be read, is no JSON, or holds something else than an object.
    """
    try:
        document = json.loads(decompressed(path), parse_constant=_reject)
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error})") from error
    if not isinstance(document, dict):
        raise UserError(f"{path}: found a JSON {type(document).__name__}, expected an object")
    return document


def decompressed(path: Path) -> bytes:
    """The content of a file, unpacked where its name ends in .gz or .zst.

    Raises:
        UserError: the file cannot be read or unpacked.
    """
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
    for number, line in enumerate(data.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line, parse_constant=_reject)
        except ValueError as error:
            raise UserError(f"{path}: line {number}: {error}; expected one JSON object a line") from error
        if not isinstance(row, dict):
            raise UserError(f"{path}: line {number}: found a JSON {type(row).__name__}, expected an object")


def _reject(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _parquet(path: Path, data: bytes) -> tuple[pl.DataFrame, dict[str, str]]:
    try:
        return pl.read_parquet(io.BytesIO(data)), dict(pl.read_parquet_metadata(io.BytesIO(data)))
    except (pl.exceptions.PolarsError, OSError) as error:
        raise UserError(f"{path}: not a Parquet file ({_first_line(error)})") from error


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
