"""The memory of an allocator at one moment: read from a recording, and told of a simulated one in the same terms."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import polars as pl

from sim.engine.allocator.caching import CachingAllocator
from sim.engine.allocator.segment import LARGE_SEGMENT, SMALL_SEGMENT, BlockState, GrowingSegment, Pool, SegmentState

_PENDING = ("active_pending_free", "active_awaiting_free")


class BlockAt(NamedTuple):
    """A block by what two allocators must agree on; a free one asks for nothing (None)."""

    segment: int  # the address where its segment, or the mapped stretch of a growing one, begins
    size: int
    state: str  # allocated | pending | inactive
    requested: int | None
    stream: int
    pool: Pool


def blocks_in(layout: pl.DataFrame) -> dict[int, BlockAt]:
    """Every block of a recorded layout, by address."""
    columns = ("address", "segment", "size", "state", "requested_size", "stream", "pool_owner", "pool_number")
    blocks = {}
    for address, segment, size, state, requested, stream, owner, number in layout.select(columns).iter_rows():
        said = _state(state)
        asked = None if said == "inactive" else requested
        blocks[address] = BlockAt(segment, size, said, asked, stream, (owner, number))
    return blocks


def blocks_of(allocator: CachingAllocator) -> dict[int, BlockAt]:
    """The same of a simulated allocator."""
    blocks = {}
    for pool, row in allocator.segments():
        segment, end = 0, -1
        for block in row:
            if block.address != end:
                segment = block.address
            end = block.address + block.size
            state = "allocated" if block.allocated else "pending" if block.pending else "inactive"
            requested = None if block.is_free else block.requested
            blocks[block.address] = BlockAt(segment, block.size, state, requested, block.stream, pool)
    return blocks


def segments_in(layout: pl.DataFrame, device_bytes: int) -> list[SegmentState]:
    """The segments of a recorded layout, in order of address.

    A growing segment is recorded as its mapped stretches: those of a stream and pool that lie within the addresses of
    one segment are taken to be its own, and the first to be its beginning.
    """
    segments: list[SegmentState] = []
    for (address,), rows in layout.sort("segment", maintain_order=True).group_by("segment", maintain_order=True):
        row = rows.row(0, named=True)
        blocks = [
            BlockState(size, requested, _state(state) == "allocated", _state(state) == "pending")
            for size, requested, state in rows.select("size", "requested_size", "state").iter_rows()
        ]
        small, pool = row["segment_type"] == "small", (row["pool_owner"], row["pool_number"])
        found = SegmentState(int(address), row["segment_size"], row["stream"], small, pool, blocks)
        if row["is_expandable"]:
            _take_stretch(segments, found, device_bytes)
        else:
            segments.append(found)
    return [_to_its_end(segment) for segment in segments]


def _take_stretch(segments: list[SegmentState], stretch: SegmentState, device_bytes: int) -> None:
    for at, home in enumerate(segments):
        same = (home.pool, home.stream, home.is_small) == (stretch.pool, stretch.stream, stretch.is_small)
        if same and home.growing is not None and stretch.address < home.address + home.growing.size:
            gap = BlockState(stretch.address - home.address - home.size, mapped=False)
            size = home.size + gap.size + stretch.size
            segments[at] = replace(home, size=size, blocks=[*home.blocks, gap, *stretch.blocks])
            return
    page = SMALL_SEGMENT if stretch.is_small else LARGE_SEGMENT
    addresses = -(-(device_bytes + device_bytes // 8) // page) * page
    segments.append(replace(stretch, growing=GrowingSegment(stretch.address, addresses, page)))


def _to_its_end(segment: SegmentState) -> SegmentState:
    """With the addresses behind what is mapped."""
    if segment.growing is None or segment.growing.size == segment.size:
        return segment
    rest = BlockState(segment.growing.size - segment.size, mapped=False)
    return replace(segment, size=segment.growing.size, blocks=[*segment.blocks, rest])


def _state(recorded: str) -> str:
    return "pending" if recorded in _PENDING else recorded.removeprefix("active_")
