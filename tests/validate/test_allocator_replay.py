"""Replaying an allocator's history: an exact copy goes to the end, and the smallest change is named."""

from pathlib import Path

import polars as pl
from click.testing import CliRunner
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from sim.engine.allocator.allocator import Event
from sim.engine.allocator.caching import ORDINARY, CachingAllocator
from sim.engine.allocator.caching_settings import MIB, CachingSettings
from sim.engine.allocator.device import SimulatedDevice
from validate.allocator.layout import blocks_of
from validate.allocator.ledger import check
from validate.allocator.pools import pools_of
from validate.allocator.recording import EVENTS, LAYOUT, Recording
from validate.allocator.replay import replay
from validate.commands import validate

TOTAL = 192 * MIB
sizes = st.one_of(st.integers(1, 3 * MIB), st.integers(1, 48 * MIB))
moves = st.lists(
    st.one_of(
        st.tuples(st.just("allocate"), sizes, st.integers(0, 1), st.sampled_from([ORDINARY, ORDINARY, (0, 1)])),
        st.tuples(st.just("free"), st.integers(0, 99)),
        st.tuples(st.just("request_free"), st.integers(0, 99)),
        st.tuples(st.just("empty_cache")),
    ),
    max_size=50,
)
chosen_settings = st.builds(
    CachingSettings,
    max_split_size=st.sampled_from([None, 24 * MIB]),
    roundup_power2_divisions=st.sampled_from([(0,) * 16, (4,) * 16]),
    expandable_segments=st.booleans(),
)


def layout_rows(allocator: CachingAllocator, moment: str) -> list[tuple]:
    """A layout as a snapshot has it: a growing segment by its mapped stretches."""
    blocks = blocks_of(allocator)
    sizes_of: dict[int, int] = {}
    for block in blocks.values():
        sizes_of[block.segment] = sizes_of.get(block.segment, 0) + block.size
    facts = {
        block.address: ("small" if block.pool.is_small else "large", block.growing is not None)
        for _, row in allocator.segments()
        for block in row
    }
    names = {"allocated": "active_allocated", "pending": "active_pending_free", "inactive": "inactive"}
    return [
        (
            moment, one.segment, sizes_of[one.segment], facts[address][0], one.stream, *one.pool, facts[address][1],
            address, one.size, one.requested or 0, names[one.state],
        )
        for address, one in sorted(blocks.items())
    ]  # fmt: skip


def make_recording(first: list, second: list, chosen: CachingSettings) -> Recording:
    """What a history of an allocator would be of the second moves, after the first."""
    rows: list[tuple] = []
    pool = ORDINARY
    recorder: list[Event] = []
    allocator = CachingAllocator(SimulatedDevice(TOTAL), chosen, recorder.append)
    alive: dict[int, tuple[int, int]] = {}
    pending: set[int] = set()

    def play(part: list) -> None:
        nonlocal pool
        for name, *arguments in part:
            begin = len(recorder)
            pool = ORDINARY
            if name == "allocate":
                size, stream, pool = arguments
                address = allocator.allocate(size, stream, pool)
                if address is not None:
                    alive[address] = pool
            elif name == "empty_cache":
                allocator.empty_cache()
            elif candidates := sorted(alive.keys() - (pending if name == "request_free" else set())):
                address = candidates[arguments[0] % len(candidates)]
                pool = alive[address]
                if name == "request_free":
                    allocator.request_free(address)
                    pending.add(address)
                else:
                    if address not in pending:
                        allocator.request_free(address)
                    allocator.complete_free(address)
                    pending.discard(address)
                    del alive[address]
            for event in recorder[begin:]:
                owner, number = pool if not event.action.startswith("segment") else pool_of_segment(event, pool)
                free = 0 if event.action == "oom" else None
                address = None if event.action == "oom" else event.address
                rows.append((event.action, address, event.size, event.stream, owner, number, len(rows), free))

    def pool_of_segment(event: Event, pool: tuple[int, int]) -> tuple[int, int]:
        return pool if event.action in ("segment_alloc", "segment_map") else ORDINARY  # private ones are never freed

    play(first)
    before = layout_rows(allocator, "before")
    rows.clear()
    play(second)
    stated = {
        "max_split_size": chosen.max_split_size or -1,
        "expandable_segments": chosen.expandable_segments,
        "roundup_power2_divisions": {str(1 << i): n for i, n in enumerate(chosen.roundup_power2_divisions)},
        "garbage_collection_threshold": 0.0,
    }
    layout = pl.DataFrame(before + layout_rows(allocator, "after"), schema=LAYOUT, orient="row")
    return Recording(pl.DataFrame(rows, schema=EVENTS, orient="row"), layout, stated)


# A request that finds memory in a segment that grows, though its block is too large to be split, gives nothing back.
LARGE_BLOCKS_GROW = CachingSettings(max_split_size=24 << 20, expandable_segments=True)
LARGE_THEN_SMALL = [
    ("allocate", 20971521, 1, ORDINARY),
    ("free", 0),
    ("empty_cache",),
    ("allocate", 1048577, 1, ORDINARY),
]


@settings(max_examples=200, deadline=None)
@example([], LARGE_THEN_SMALL, LARGE_BLOCKS_GROW)
@given(moves, moves, chosen_settings)
def test_the_same_rules_go_the_same_way(first: list, second: list, chosen: CachingSettings) -> None:
    recording = make_recording(first, second, chosen)
    check(recording.events, recording.layout)
    replayed = replay(recording, device_bytes=TOTAL)
    assert replayed.difference is None
    assert replayed.events == len(recording.events)
    after = recording.layout.filter(pl.col("moment") == "after")
    assert (replayed.segments, replayed.blocks) == (after["segment"].n_unique(), len(after))


@settings(max_examples=100, deadline=None)
@given(moves, st.integers(0, 10_000), st.sampled_from(["address", "size", "stream"]))
def test_a_changed_event_is_named(second: list, which: int, column: str) -> None:
    recording = make_recording([], second, CachingSettings())
    told = [row for row, action in enumerate(recording.events["action"]) if action in ("alloc", "segment_free")]
    assume(told)
    row = told[which % len(told)]
    changed = recording.events[row, column] + 1024
    recording.events = recording.events.with_columns(
        pl.when(pl.int_range(pl.len()) == row).then(changed).otherwise(pl.col(column)).alias(column)
    )
    assert replay(recording, device_bytes=TOTAL).difference is not None


@given(moves)
def test_other_rules_go_another_way(second: list) -> None:
    recording = make_recording([], [*second, ("allocate", 5 * MIB, 0, ORDINARY)], CachingSettings())
    recording.settings["expandable_segments"] = True
    assert "segment" in str(replay(recording, device_bytes=TOTAL).difference)


def test_a_lost_block_is_named() -> None:
    recording = make_recording([], [("allocate", 512, 0, ORDINARY), ("allocate", 512, 0, ORDINARY)], CachingSettings())
    recording.layout = recording.layout.filter(pl.col("state") == "active_allocated")
    assert "in the replay" in str(replay(recording, device_bytes=TOTAL).difference)


@given(moves, moves)
def test_events_that_do_not_say_their_pool_are_told_it_by_their_segments(first: list, second: list) -> None:
    """As long as no private pool gives a segment back, whose pool no layout states then."""
    recording = make_recording(first, second, CachingSettings())
    columns = ("action", "pool_owner", "pool_number")
    rows = list(recording.events.select(columns).iter_rows())
    assume(all((owner, number) == ORDINARY for action, owner, number in rows if action == "segment_free"))
    stated = [(owner, number) for action, owner, number in rows if action != "oom"]
    silent = pl.lit(None, pl.Int64)
    recording.events = recording.events.with_columns(pool_owner=silent, pool_number=silent)
    told = [pool for pool, (action, *_) in zip(pools_of(recording), rows, strict=True) if action != "oom"]
    assert told == stated


def test_the_command_says_what_is_equal_and_what_differs_first(tmp_path: Path) -> None:
    moves = [("allocate", 5 * MIB, 0, ORDINARY), ("allocate", 700, 0, ORDINARY), ("free", 0)]
    recording = make_recording([], moves, CachingSettings())
    recording.facts = {"machine": {"memory": TOTAL}}
    recording.save(tmp_path / "same")
    run = CliRunner().invoke(validate, ["allocator", str(tmp_path / "same")])
    assert (run.exit_code, run.output) == (0, "6 events, 2 segments and 3 blocks are equal\n")
    recording.facts = {}
    recording.events = recording.events.with_columns(size=pl.col("size") + pl.col("size").is_between(600, 800) * 1024)
    recording.save(tmp_path / "other")
    run = CliRunner().invoke(validate, ["allocator", str(tmp_path / "other")])
    assert (run.exit_code, "expected --device-bytes" in run.output) == (2, True)
    run = CliRunner().invoke(validate, ["allocator", str(tmp_path / "other"), "--device-bytes", str(TOTAL)])
    assert run.exit_code == 1
    assert "blocks" in run.output or "event" in run.output
