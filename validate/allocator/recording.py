"""A recording of PyTorch's caching allocator: every event between two moments, and the memory's layout at both.

The events are those of `torch.cuda.memory._record_memory_history`, whose format `torch/cuda/memory.py` documents
(`_snapshot`). Kept of them is all that a replay needs: action, address, size, stream, pool, in order of time. The size
of an allocation, and of its two frees, is the one that was asked for, so a replay has to round it itself; that of a
segment is the real one. Stack traces are not kept.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from ground.errors import UserError
from ground.folder import new_folder

# Entries that say nothing about memory: where a snapshot was taken, and what a program wrote between the lines.
_NO_EVENTS = ("snapshot", "annotate", "user_defined")

# Null where an event does not have it: an `oom` has no address but the bytes that the device had free; the events of
# older PyTorch versions do not say their pool. A pool is a pair of numbers, (0, 0) being the ordinary one.
EVENTS: dict[str, pl.DataType] = {
    "action": pl.String(),
    "address": pl.Int64(),
    "size": pl.Int64(),
    "stream": pl.Int64(),
    "pool_owner": pl.Int64(),
    "pool_number": pl.Int64(),
    "time_us": pl.Int64(),
    "device_free": pl.Int64(),
}
# One row a block, in order of address; what belongs to its segment stands in every row of it.
LAYOUT: dict[str, pl.DataType] = {
    "moment": pl.String(),  # before | after
    "segment": pl.Int64(),  # address
    "segment_size": pl.Int64(),
    "segment_type": pl.String(),  # small | large
    "stream": pl.Int64(),
    "pool_owner": pl.Int64(),
    "pool_number": pl.Int64(),
    "is_expandable": pl.Boolean(),
    "address": pl.Int64(),
    "size": pl.Int64(),
    "requested_size": pl.Int64(),
    "state": pl.String(),  # active_allocated | active_pending_free (also called active_awaiting_free) | inactive
}
_SCHEMA_VERSION = 1


@dataclass
class Recording:
    """One recording of one device.

    Attributes:
        events: the columns of `EVENTS`, in the order in which the allocator did them.
        layout: the columns of `LAYOUT`, at the beginning ("before") and at the end ("after").
        settings: the allocator's settings as the snapshot states them.
        statistics: the allocator's own counters at both moments, "before" and "after".
        facts: what was run, on what: GPU, driver, versions, date.
    """

    events: pl.DataFrame
    layout: pl.DataFrame
    settings: dict[str, Any]
    statistics: dict[str, dict[str, int]] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    def save(self, folder: Path, *, force: bool = False) -> None:
        """Write `events.parquet`, `layout.parquet` and `recording.json`, whole or not at all.

        Raises:
            UserError: the folder exists and is not empty (without `force`), or cannot be written.
        """
        about = {
            "schema_version": _SCHEMA_VERSION,
            "settings": self.settings,
            "statistics": self.statistics,
            "facts": self.facts,
        }
        with new_folder(folder, force=force) as partial:
            for name in ("events", "layout"):
                table: pl.DataFrame = getattr(self, name)
                table.write_parquet(partial / f"{name}.parquet", compression="zstd", compression_level=19)
            (partial / "recording.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Recording:
        """Read what `save` wrote.

        Raises:
            UserError: a file is missing, unreadable or of another version, or its columns are not those expected.
        """
        path = folder / "recording.json"
        try:
            about = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror}); expected an allocator recording") from error
        except ValueError as error:
            raise UserError(f"{path}: not a JSON file ({error})") from error
        version = about.get("schema_version") if isinstance(about, dict) else None
        if version != _SCHEMA_VERSION:
            raise UserError(f"{path}: key schema_version is {version!r}; expected {_SCHEMA_VERSION}")
        return cls(
            events=_read(folder / "events.parquet", EVENTS),
            layout=_read(folder / "layout.parquet", LAYOUT),
            settings=about["settings"],
            statistics=about["statistics"],
            facts=about["facts"],
        )


def reduce(before: Mapping[str, Any], after: Mapping[str, Any], *, device: int = 0) -> Recording:
    """Two snapshots, taken while history was recorded, as the recording of what happened between them.

    `before` is the first snapshot since the recording began: the second one's trace holds an entry that says where it
    was taken, and the events behind it are those that are kept.

    An action that is not known is kept like the others; `validate.allocator.ledger.check` says whether all is there.

    Raises:
        UserError: the second snapshot's trace does not reach back to the first one.
    """
    trace = after["device_traces"][device]
    marks = [index for index, entry in enumerate(trace) if entry["action"] == "snapshot"]
    if not marks:
        raise UserError(
            "allocator trace: no entry says where the first snapshot was taken; expected one, so the ring of events "
            "was too short and has lost its beginning"
        )
    last = marks[1] if len(marks) > 1 else len(trace)
    rows = [_event(entry) for entry in trace[marks[0] + 1 : last] if entry["action"] not in _NO_EVENTS]
    layouts = [
        _layout(snapshot["segments"], moment, device) for moment, snapshot in (("before", before), ("after", after))
    ]
    return Recording(
        events=pl.DataFrame(rows, schema=EVENTS, orient="row"),
        layout=pl.concat(layouts),
        settings=dict(after.get("allocator_settings", {})),
    )


def _event(entry: Mapping[str, Any]) -> tuple[Any, ...]:
    action = entry["action"]
    owner, number = entry.get("pool_id", entry.get("segment_pool_id", (None, None)))
    return (
        action,
        entry.get("addr") if action != "oom" else None,
        entry["size"],
        entry["stream"],
        owner,
        number,
        entry.get("time_us"),
        entry.get("device_free"),
    )


def _layout(segments: Iterable[Mapping[str, Any]], moment: str, device: int) -> pl.DataFrame:
    rows = []
    for segment in segments:
        if segment.get("device", device) != device:
            continue
        address = segment["address"]
        owner, number = segment.get("segment_pool_id", (0, 0))
        for block in segment["blocks"]:
            rows.append(
                (
                    moment,
                    segment["address"],
                    segment["total_size"],
                    segment["segment_type"],
                    segment["stream"],
                    owner,
                    number,
                    segment.get("is_expandable", False),
                    block.get("address", address),
                    block["size"],
                    block.get("requested_size", block["size"]),
                    block["state"],
                )
            )
            address += block["size"]
    return pl.DataFrame(rows, schema=LAYOUT, orient="row").sort("address", maintain_order=True)


def _read(path: Path, columns: Mapping[str, pl.DataType]) -> pl.DataFrame:
    try:
        table = pl.read_parquet(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise UserError(f"{path}: not a readable Parquet file ({str(error).splitlines()[0]})") from error
    if dict(table.schema) != dict(columns):
        raise UserError(f"{path}: columns {', '.join(table.columns)}; expected {', '.join(columns)} with their types")
    return table
