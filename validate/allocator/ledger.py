"""Is a recording whole? Its events must lead from the one layout to the other, allocation by allocation."""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

from ground.errors import UserError

ACTIONS = (
    "alloc",
    "free_requested",
    "free_completed",
    "segment_alloc",
    "segment_free",
    "segment_map",
    "segment_unmap",
    "oom",
)
_PENDING = ("active_pending_free", "active_awaiting_free")


def check(events: pl.DataFrame, layout: pl.DataFrame) -> None:
    """Keep the books over all events: allocations by address, segments by address, mapped bytes in sum.

    The tables are those of `validate.allocator.recording`.

    A block that is inactive has no book: where free blocks are split and merged is what a replay has to find out.

    Raises:
        UserError: an event that cannot follow those before it, or books that do not close with the last layout; the
            message names the first event or address.
    """
    before = layout.filter(pl.col("moment") == "before")
    after = layout.filter(pl.col("moment") == "after")
    live, segments, mapped = _allocations(before), _segments(before), _mapped(before)
    columns = ("action", "address", "size", "stream")
    for number, (action, address, size, stream) in enumerate(events.select(columns).iter_rows()):
        _expect(action in ACTIONS, number, f"is an unknown {action}")
        if action == "alloc":
            _expect(address not in live, number, f"allocates {address:#x}, which is in use")
            live[address] = size, "active_allocated"
        elif action == "free_requested":
            _expect(live.get(address) == (size, "active_allocated"), number, f"frees {size} bytes at {address:#x}")
            live[address] = size, "active_pending_free"
        elif action == "free_completed":
            pending = live.get(address) == (size, "active_pending_free")
            _expect(pending, number, f"completes the free of {size} bytes at {address:#x}")
            del live[address]
        elif action == "segment_alloc":
            _expect(address not in segments, number, f"makes a segment at {address:#x}, where one is")
            segments[address] = size, stream
        elif action == "segment_free":
            _expect(segments.get(address, (None,))[0] == size, number, f"frees a segment of {size} at {address:#x}")
            del segments[address]
        elif action == "segment_map":
            mapped += size
        elif action == "segment_unmap":
            mapped -= size
    _closes("allocations", live, _allocations(after))
    _closes("segments", segments, _segments(after))
    if mapped != _mapped(after):
        raise UserError(
            f"allocator recording: {mapped} bytes are mapped in expandable segments by its events, {_mapped(after)} by "
            "its last layout; expected the same, so events are missing"
        )


def _allocations(layout: pl.DataFrame) -> dict[int, tuple[int, str]]:
    """Address → (bytes asked for, state) of every block in use."""
    used = layout.filter(pl.col("state") != "inactive").select("address", "requested_size", "state")
    return {
        address: (size, "active_pending_free" if state in _PENDING else state)
        for address, size, state in used.iter_rows()
    }


def _segments(layout: pl.DataFrame) -> dict[int, tuple[int, int]]:
    """Address → (bytes, stream) of every segment that was made whole; expandable ones grow and shrink by mapping."""
    whole = layout.filter(~pl.col("is_expandable")).select("segment", "segment_size", "stream").unique()
    return {address: (size, stream) for address, size, stream in whole.iter_rows()}


def _mapped(layout: pl.DataFrame) -> int:
    return int(layout.filter(pl.col("is_expandable"))["size"].sum())


def _expect(holds: bool, number: int, what: str) -> None:
    if not holds:
        raise UserError(f"allocator recording: event {number} {what}; expected what the events before it left")


def _closes(what: str, by_events: Mapping[int, object], by_layout: Mapping[int, object]) -> None:
    differing = [
        address for address in sorted({*by_events, *by_layout}) if by_events.get(address) != by_layout.get(address)
    ]
    if differing:
        address = differing[0]
        raise UserError(
            f"allocator recording: {what} differ at {len(differing)} addresses, first at {address:#x}: "
            f"{by_events.get(address)} by its events, {by_layout.get(address)} by its last layout; "
            "expected the same, so events are missing"
        )
