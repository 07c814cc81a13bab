"""Recordings of the CUDA allocator, on snapshots made by hand in PyTorch's documented format."""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ground.errors import UserError
from validate.allocator.ledger import check
from validate.allocator.record import record
from validate.allocator.recording import EVENTS, LAYOUT, Recording, reduce

MIB = 1 << 20


class HandMade:
    """A wasteful allocator: every segment is one block. It writes history as PyTorch does."""

    def __init__(self, seed: int, *, expandable: bool, pool_ids: bool) -> None:
        self.random = random.Random(seed)
        self.expandable, self.pool_ids = expandable, pool_ids
        self.segments: dict[int, dict[str, Any]] = {}
        self.trace: list[dict[str, Any]] = []
        self.next_address = 0x7F00_0000_0000

    def note(self, action: str, address: int, size: int, stream: int = 0) -> None:
        entry = {"action": action, "size": size, "stream": stream, "time_us": 1000 + 3 * len(self.trace)}
        entry["device_free" if action == "oom" else "addr"] = address
        if self.pool_ids:
            entry["pool_id"] = (0, 0)
        self.trace.append(entry)

    def act(self) -> None:
        free = [s for s in self.segments.values() if s["blocks"][0]["state"] == "inactive"]
        used = [s for s in self.segments.values() if s["blocks"][0]["state"] == "active_allocated"]
        pending = [s for s in self.segments.values() if s["blocks"][0]["state"] == "active_pending_free"]
        choice = self.random.choice(["new", "reuse", "request", "complete", "release", "oom"])
        if choice == "new":
            self.new_segment()
        elif choice == "reuse" and free:
            self.use(self.random.choice(free))
        elif choice == "request" and used:
            block = self.random.choice(used)["blocks"][0]
            block["state"] = "active_pending_free"
            self.note("free_requested", block["address"], block["requested_size"])
        elif choice == "complete" and pending:
            block = self.random.choice(pending)["blocks"][0]
            self.note("free_completed", block["address"], block["requested_size"])
            block |= {"state": "inactive", "requested_size": 0}
        elif choice == "release" and free:
            gone = self.random.choice(free)
            self.note("segment_unmap" if self.expandable else "segment_free", gone["address"], gone["total_size"])
            del self.segments[gone["address"]]
        elif choice == "oom":
            self.note("oom", 12345, 80 << 30)

    def new_segment(self) -> None:
        size, address = 2 * MIB * self.random.randint(1, 9), self.next_address
        self.next_address += size
        block = {"size": size, "requested_size": 0, "address": address, "state": "inactive", "frames": []}
        segment = {"device": 0, "address": address, "total_size": size, "stream": 0, "segment_type": "large"}
        segment |= {"segment_pool_id": (0, 0), "is_expandable": self.expandable, "blocks": [block]}
        self.segments[address] = segment
        self.note("segment_map" if self.expandable else "segment_alloc", address, size)
        self.use(segment)

    def use(self, segment: dict[str, Any]) -> None:
        block = segment["blocks"][0]
        block |= {"state": "active_allocated", "requested_size": self.random.randint(1, block["size"])}
        self.note("alloc", block["address"], block["requested_size"])

    def snapshot(self) -> dict[str, Any]:
        self.note("snapshot", 0, 0)
        settings = {"PYTORCH_CUDA_ALLOC_CONF": "", "expandable_segments": self.expandable}
        return copy.deepcopy(
            {
                "segments": list(self.segments.values()),
                "device_traces": [self.trace],
                "allocator_settings": settings,
            }
        )


def two_snapshots(
    seed: int, acts: int, *, expandable: bool = False, pool_ids: bool = True
) -> tuple[dict[str, Any], dict[str, Any]]:
    allocator = HandMade(seed, expandable=expandable, pool_ids=pool_ids)
    for _ in range(acts // 2):
        allocator.act()
    before = allocator.snapshot()
    for _ in range(acts):
        allocator.act()
    return before, allocator.snapshot()


seeds = st.integers(0, 10_000)


@given(seeds, st.integers(0, 60), st.booleans(), st.booleans())
def test_every_event_between_the_snapshots_is_kept_in_order(
    seed: int, acts: int, expandable: bool, pool_ids: bool
) -> None:
    before, after = two_snapshots(seed, acts, expandable=expandable, pool_ids=pool_ids)
    recording = reduce(before, after)
    check(recording.events, recording.layout)
    events = after["device_traces"][0][len(before["device_traces"][0]) : -1]
    assert recording.events["action"].to_list() == [event["action"] for event in events]
    assert recording.events["size"].to_list() == [event["size"] for event in events]
    assert recording.events["address"].to_list() == [event.get("addr") for event in events]
    assert recording.events["device_free"].to_list() == [event.get("device_free") for event in events]
    assert set(recording.events["pool_owner"]) <= ({0} if pool_ids else {None})
    for moment, snapshot in (("before", before), ("after", after)):
        rows = recording.layout.filter(recording.layout["moment"] == moment)
        blocks = [block for segment in snapshot["segments"] for block in segment["blocks"]]
        found = list(rows.select("address", "size", "requested_size", "state").iter_rows())
        wanted = [tuple(block[key] for key in ("address", "size", "requested_size", "state")) for block in blocks]
        assert found == sorted(wanted)
    assert recording.settings == after["allocator_settings"]


@given(seeds, st.integers(1, 60), st.booleans(), st.data())
def test_a_lost_event_is_noticed(seed: int, acts: int, expandable: bool, data: st.DataObject) -> None:
    before, after = two_snapshots(seed, acts, expandable=expandable)
    trace = after["device_traces"][0]
    first = len(before["device_traces"][0])
    matter = [index for index in range(first, len(trace) - 1) if trace[index]["action"] != "oom"]
    if not matter:
        return
    del trace[data.draw(st.sampled_from(matter))]
    recording = reduce(before, after)
    with pytest.raises(UserError, match="expected"):
        check(recording.events, recording.layout)


def test_a_round_trip_loses_nothing(tmp_path: Path) -> None:
    recording = reduce(*two_snapshots(3, 80))
    recording.statistics = {"before": {"num_ooms": 0}, "after": {"num_ooms": 2}}
    recording.facts = {"gpu": "none", "what": "made by hand"}
    recording.save(tmp_path / "r")
    read = Recording.load(tmp_path / "r")
    assert read.events.equals(recording.events) and read.layout.equals(recording.layout)
    assert (read.settings, read.statistics, read.facts) == (
        recording.settings,
        recording.statistics,
        recording.facts,
    )
    assert dict(read.events.schema) == EVENTS and dict(read.layout.schema) == LAYOUT
    assert sorted(path.name for path in (tmp_path / "r").iterdir()) == [
        "events.parquet",
        "layout.parquet",
        "recording.json",
    ]


def test_recording_what_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """With torch's functions replaced by the hand-made allocator's."""
    allocator = HandMade(7, expandable=False, pool_ids=True)
    recorded: list[object] = []
    for _ in range(10):
        allocator.act()
    allocator.trace.clear()  # what was before history was switched on
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "memory_stats", lambda: {"num_ooms": len(allocator.trace), "name": "text"})
    monkeypatch.setattr(torch.cuda.memory, "_snapshot", allocator.snapshot)
    monkeypatch.setattr(torch.cuda.memory, "_record_memory_history", lambda *on, **how: recorded.append((on, how)))

    def run() -> None:
        assert len(recorded) == 1  # on
        for _ in range(30):
            allocator.act()

    recording = record(run, {"what": "made by hand"})
    assert recorded[-1] == ((None,), {})  # off
    assert recording.facts == {"what": "made by hand", "ledger": "closes"}
    assert recording.events["time_us"].to_list() == [entry["time_us"] for entry in allocator.trace[1:-1]]
    assert recording.statistics["after"] == {"num_ooms": 1 + len(recording.events)}

    def forget() -> None:
        run()
        lost = max(index for index, entry in enumerate(allocator.trace) if entry["action"] == "alloc")
        del allocator.trace[lost]

    allocator.trace.clear()
    recorded.clear()
    assert "expected" in record(forget, {}).facts["ledger"]  # and it is kept all the same


def test_blocks_without_an_address_stand_one_behind_the_other() -> None:
    """As PyTorch wrote them before 2.1."""
    blocks = [{"size": size, "state": "inactive"} for size in (512, 1024, 2 * MIB - 1536)]
    segment = {"address": 4096, "total_size": 2 * MIB, "stream": 0, "segment_type": "small", "blocks": blocks}
    snapshot = {"segments": [segment], "device_traces": [[{"action": "snapshot", "addr": 0, "size": 0, "stream": 0}]]}
    recording = reduce(snapshot, snapshot)
    assert recording.layout["address"].to_list() == 2 * [4096, 4608, 5632]
    assert recording.layout["moment"].to_list() == 3 * ["before"] + 3 * ["after"]


def test_entries_that_are_no_events_are_left_out() -> None:
    before, after = two_snapshots(1, 20)
    kept = len(reduce(before, after).events)
    trace = after["device_traces"][0]
    note = {"action": "user_defined", "addr": 0, "size": 0, "stream": 0}
    trace.insert(len(trace) - 2, note)
    assert len(reduce(before, after).events) == kept


def test_a_ring_that_has_lost_its_beginning_is_refused() -> None:
    before, after = two_snapshots(5, 40)
    after["device_traces"][0] = [e for e in after["device_traces"][0] if e["action"] != "snapshot"]
    with pytest.raises(UserError, match="ring of events was too short"):
        reduce(before, after)


def test_an_unknown_action_is_kept_and_said() -> None:
    before, after = two_snapshots(5, 40)
    trace = after["device_traces"][0]
    trace.insert(len(trace) - 1, {"action": "teleport", "addr": 1, "size": 1, "stream": 0})
    recording = reduce(before, after)
    assert recording.events["action"].to_list()[-1] == "teleport"
    with pytest.raises(UserError, match=f"event {len(recording.events) - 1} is an unknown teleport"):
        check(recording.events, recording.layout)


def test_what_is_no_recording_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected an allocator recording"):
        Recording.load(tmp_path)
    recording = reduce(*two_snapshots(3, 10))
    recording.save(tmp_path / "r")
    (tmp_path / "r" / "events.parquet").write_bytes((tmp_path / "r" / "layout.parquet").read_bytes())
    with pytest.raises(UserError, match=r"events\.parquet: columns moment"):
        Recording.load(tmp_path / "r")
    (tmp_path / "r" / "recording.json").write_text("{}")
    with pytest.raises(UserError, match="schema_version is None; expected 1"):
        Recording.load(tmp_path / "r")
