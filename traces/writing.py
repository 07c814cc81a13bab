"""Write a trace: Parquet keeps everything, CSV and JSON lines the table, mooncake what that format can say."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Literal

import polars as pl

from ground.errors import UserError
from traces.readers.canonical import METADATA_KEY
from traces.readers.mooncake import BLOCK_TOKENS as MOONCAKE_BLOCK
from traces.session_arrivals import need_one_clock
from traces.table import Trace

Layout = Literal["canonical", "mooncake"]


def write(trace: Trace, path: str | Path, layout: Layout = "canonical") -> None:
    """Write `trace` to a .parquet, .csv or .jsonl file, whole or not at all; an existing file is replaced.

    Parquet carries format, source, counts and notes in its metadata, so that reading it back gives an equal trace.
    CSV writes prefix ids with blanks between. The mooncake layout (.jsonl) rounds arrivals to ms.

    Raises:
        UserError: another suffix, a folder that cannot be written, a trace without a common clock, or one that the
            mooncake layout cannot hold.
    """
    path = Path(path)
    need_one_clock(trace)
    if path.suffix not in (".parquet", ".csv", ".jsonl"):
        raise UserError(f"{path}: found suffix {path.suffix!r}, expected .parquet, .csv or .jsonl")
    table = trace.requests if layout == "canonical" else _mooncake(trace, path)
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from error
    partial = Path(name)
    try:
        with os.fdopen(handle, "wb") as stream:
            if path.suffix == ".parquet":
                table.write_parquet(stream, metadata={METADATA_KEY: _metadata(trace)})
            elif path.suffix == ".csv":
                if "prefix_ids" in table.columns:
                    table = table.with_columns(pl.col("prefix_ids").cast(pl.List(pl.String)).list.join(" "))
                table.write_csv(stream)
            else:
                table.write_ndjson(stream)
        # mkstemp makes the file private; give it the rights that an ordinary new file has.
        umask = os.umask(0)
        os.umask(umask)
        partial.chmod(0o666 & ~umask)
        partial.replace(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from error
    finally:
        partial.unlink(missing_ok=True)


def _metadata(trace: Trace) -> str:
    return json.dumps(
        {
            "format": trace.format,
            "source": trace.source,
            "rows_read": trace.rows_read,
            "dropped": trace.dropped,
            "notes": trace.notes,
        }
    )


def _mooncake(trace: Trace, path: Path) -> pl.DataFrame:
    requests = trace.requests
    if path.suffix != ".jsonl":
        raise UserError(f"{path}: the mooncake layout is JSON lines, expected suffix .jsonl")
    if requests["arrival"].null_count():
        raise UserError(
            f"{path}: the mooncake layout needs an arrival for every request; this trace has closed-loop turns"
        )
    columns = {
        "timestamp": (pl.col("arrival") * 1000).round().cast(pl.Int64),
        "input_length": pl.col("prompt_tokens"),
        "output_length": pl.col("output_tokens"),
    }
    if "prefix_ids" in requests.columns:
        other = requests["prefix_block_tokens"].drop_nulls().unique().to_list()
        if other != [MOONCAKE_BLOCK]:
            raise UserError(f"{path}: the mooncake layout has {MOONCAKE_BLOCK}-token blocks, this trace {other}")
        columns["hash_ids"] = pl.col("prefix_ids")
    return requests.select(**columns)
