"""Replay a recording on the simulated allocator and hold it to every event and to the last layout: no tolerance.

Requests and frees are the recording's, and so are the addresses that the device gives; which block serves a request,
what is split, merged and given back, and when the device is asked, is the simulated allocator's to decide. Whether the
device had memory left is read off the recording: where the next thing that it tells is not a new segment, it had none.
"""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from ground.errors import UserError
from sim.engine.allocator.allocator import Event
from sim.engine.allocator.caching import ORDINARY, CachingAllocator
from sim.engine.allocator.caching_settings import MIB, CachingSettings
from sim.engine.allocator.segment import Pool
from validate.allocator.layout import blocks_in, blocks_of, segments_in
from validate.allocator.pools import pools_of
from validate.allocator.recording import Recording

_OF_SEGMENTS = ("segment_alloc", "segment_free", "segment_map", "segment_unmap")
_GIVEN_BACK = ("segment_free", "segment_unmap", "oom")


@dataclass(frozen=True)
class Replayed:
    """How far the two went together: `difference` is None if to the end, else what differed first."""

    events: int
    segments: int
    blocks: int
    difference: str | None


def replay(recording: Recording, *, device_bytes: int, limit: int | None = None) -> Replayed:
    """Replay on a device of so many bytes; `limit` as in `CachingSettings`, which a recording does not hold.

    Raises:
        UserError: the recording's settings are not known.
    """
    before, after = (recording.layout.filter(pl.col("moment") == moment) for moment in ("before", "after"))
    events = list(recording.events.iter_rows(named=True))
    tape = _Tape([Event(row["action"], row["address"] or 0, row["size"], row["stream"]) for row in events])
    allocator = CachingAllocator(
        _RecordedDevice(tape, device_bytes), settings_of(recording.settings, limit), tape.compare
    )
    for segment in segments_in(before, device_bytes):
        allocator.adopt(segment)
    pools = pools_of(recording)
    try:
        while tape.at < len(events):
            _follow(tape, allocator, pools)
    except _Differs as difference:
        return Replayed(tape.at, 0, 0, str(difference))
    ours, theirs = blocks_of(allocator), blocks_in(after)
    for address in sorted({*ours, *theirs}):
        if ours.get(address) != theirs.get(address):
            what = (
                f"the block at {address:#x} is {theirs.get(address)} on the device, {ours.get(address)} in the replay"
            )
            return Replayed(len(events), 0, 0, what)
    return Replayed(len(events), after["segment"].n_unique(), len(after), None)


def settings_of(stated: dict, limit: int | None = None) -> CachingSettings:
    """The settings that a snapshot states (`allocator_settings` of `torch.cuda.memory._snapshot`)."""
    divisions = stated.get("roundup_power2_divisions") or {}
    most = int(stated.get("max_split_size", -1))
    if not isinstance(divisions, dict):
        raise UserError(f"allocator recording: roundup_power2_divisions is {divisions!r}; expected a number by MiB")
    by_interval = tuple(int(divisions.get(str(1 << interval), 0)) for interval in range(16))
    return CachingSettings(
        max_split_size=most if 0 < most < 1 << 62 else None,
        garbage_collection_threshold=float(stated.get("garbage_collection_threshold", 0.0)),
        roundup_power2_divisions=by_interval,
        expandable_segments=bool(stated.get("expandable_segments", False)),
        limit=limit,
    )


class _Differs(Exception):
    """The two do different things."""


class _Tape:
    """The recorded events, and how far the replay has followed them."""

    def __init__(self, events: list[Event]) -> None:
        self.events = events
        self.at = 0

    def next(self, offset: int = 0) -> Event | None:
        return self.events[self.at + offset] if self.at + offset < len(self.events) else None

    def compare(self, event: Event) -> None:
        recorded = self.next()
        if event.action == "oom" and recorded is not None:
            event = event._replace(address=recorded.address)  # it has none, but the device's free bytes
        if event != recorded:
            raise _Differs(f"event {self.at} is {_told(recorded)} on the device, {_told(event)} in the replay")
        self.at += 1


class _RecordedDevice:
    """Gives the addresses that the real device gave, and has no memory where it had none."""

    def __init__(self, tape: _Tape, total: int) -> None:
        self.total = total
        self._tape = tape

    def malloc(self, size: int) -> int | None:
        recorded = self._tape.next()
        if recorded is not None and recorded.action in _GIVEN_BACK:
            return None
        if recorded is None or recorded.action != "segment_alloc":
            raise _Differs(f"event {self._tape.at} is {_told(recorded)} on the device; the replay needs a new segment")
        return recorded.address

    def free(self, address: int) -> None:
        pass

    def reserve(self, size: int) -> int:
        # Where it is mapped next, be it after something was given back; if nowhere, any address will do.
        ahead = 0
        while (recorded := self._tape.next(ahead)) is not None and recorded.action in _GIVEN_BACK:
            ahead += 1
        return recorded.address if recorded is not None and recorded.action == "segment_map" else 1 << 62

    def map(self, address: int, size: int) -> bool:
        recorded = self._tape.next()
        return recorded is None or recorded.action not in _GIVEN_BACK

    def unmap(self, address: int, size: int) -> None:
        pass


def _follow(tape: _Tape, allocator: CachingAllocator, pools: list[Pool]) -> None:
    """Do what led to the next events: a request, a free, or a call that gave the cache back."""
    ahead = 0
    while (event := tape.next(ahead)) is not None and event.action in _OF_SEGMENTS:
        ahead += 1
    first = tape.next()
    assert first is not None
    begins = tape.at
    for at in range(begins, begins + ahead):
        if tape.events[at].action in ("segment_free", "segment_unmap") and pools[at] != ORDINARY:
            allocator.abandon(pools[at])  # or it could not have been given back
    if ahead and first.action in ("segment_free", "segment_unmap"):
        # Before a request that the cache serves, or before none, somebody asked for it.
        wanted = event is not None and event.action in ("alloc", "oom")
        if not wanted or (event and allocator.reuses(event.size, event.stream, pools[begins + ahead])):
            allocator.empty_cache()
            if tape.at == begins:
                raise _Differs(f"event {begins} is {_told(first)} on the device, which the replay has nothing to give")
            return
    if event is None or event.action not in ("alloc", "oom", "free_requested", "free_completed"):
        raise _Differs(f"event {tape.at} is {_told(tape.next())}, which no request led to")
    try:
        if event.action == "free_requested":
            allocator.request_free(event.address)
        elif event.action == "free_completed":
            allocator.complete_free(event.address)
        else:
            allocator.allocate(event.size, event.stream, pools[begins + ahead])
    except KeyError:
        raise _Differs(f"event {tape.at} is {_told(event)} on the device, of what the replay does not hold") from None
    if tape.at == begins:
        raise _Differs(f"event {tape.at} is {_told(event)} on the device, and nothing in the replay")


def _told(event: Event | None) -> str:
    if event is None:
        return "the end"
    return f"{event.action} of {event.size / MIB:.3f} MiB at {event.address:#x} on stream {event.stream}"
