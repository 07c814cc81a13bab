"""Allocators of device memory: nothing overlaps, nothing is lost, and PyTorch's rules as its source states them."""

import sys
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.engine.allocator import ALLOCATORS
from sim.engine.allocator.allocator import Event
from sim.engine.allocator.caching import CachingAllocator
from sim.engine.allocator.caching_settings import MIB, CachingSettings
from sim.engine.allocator.device import SimulatedDevice
from sim.engine.allocator.paged import PagedAllocator
from sim.engine.allocator.size_class import SizeClassAllocator

KIB, GIB = 1 << 10, 1 << 30
sizes = st.one_of(
    st.integers(1, 4 * KIB), st.integers(1, 3 * MIB), st.sampled_from([MIB, 10 * MIB]), st.integers(1, 64 * MIB)
)
# (bytes to allocate on a stream) or (which of those alive to free)
steps = st.lists(st.one_of(st.tuples(sizes, st.integers(0, 2)), st.integers(0, 200)), max_size=60)
caching_settings = st.builds(
    CachingSettings,
    max_split_size=st.sampled_from([None, None, 24 * MIB]),
    garbage_collection_threshold=st.sampled_from([0.0, 0.3]),
    roundup_power2_divisions=st.sampled_from([(0,) * 16, (4,) * 16]),
    expandable_segments=st.booleans(),
    limit=st.sampled_from([None, 128 * MIB]),
)


def play(allocator: object, moves: list) -> dict[int, int]:
    """Do the moves; what is alive in the end, bytes by address."""
    alive: dict[int, int] = {}
    for move in moves:
        if isinstance(move, tuple):
            address = allocator.allocate(*move)  # type: ignore[attr-defined]
            if address is not None:
                assert address not in alive
                alive[address] = move[0]
        elif alive:
            address = sorted(alive)[move % len(alive)]
            allocator.free(address)  # type: ignore[attr-defined]
            del alive[address]
    return alive


@pytest.mark.parametrize("name", sorted(ALLOCATORS))
@settings(max_examples=60, deadline=None)
@given(moves=steps)
def test_books_close(name: str, moves: list) -> None:
    device = SimulatedDevice(256 * MIB)
    allocator = ALLOCATORS[name](device)
    alive = play(allocator, moves)
    stats = allocator.stats()
    assert stats.requested == sum(alive.values()) <= stats.allocated <= stats.active <= stats.reserved <= device.total
    assert 0.0 <= stats.internal_fragmentation < 1.0 and 0.0 <= stats.external_fragmentation <= 1.0
    for address in alive:
        allocator.free(address)
    end = allocator.stats()
    assert (end.requested, end.allocated, end.active) == (0, 0, 0)
    with pytest.raises(KeyError):
        allocator.free(1)


@settings(max_examples=300, deadline=None)
@given(steps, caching_settings)
def test_blocks_tile_their_segments_and_free_neighbours_are_one(moves: list, chosen: CachingSettings) -> None:
    device = SimulatedDevice(256 * MIB)
    allocator = CachingAllocator(device, chosen)
    alive = play(allocator, moves)
    found, mapped = {}, 0
    for _, blocks in allocator.segments():
        for block, following in zip(blocks, [*blocks[1:], None], strict=True):
            mapped += block.size
            if block.allocated:
                found[block.address] = block.requested
                assert block.size >= block.requested
            if following is not None and block.address + block.size == following.address:
                assert not (block.is_free and following.is_free)
                assert following.prev is block and block.next is following
            elif following is not None:
                assert block.growing is not None, "a hole in a segment that does not grow"
    assert found == alive
    stats = allocator.stats()
    assert mapped == stats.reserved
    if not chosen.expandable_segments:
        assert device.used == stats.reserved
        idle = [
            block.size
            for _, blocks in allocator.segments()
            for block in blocks
            if block.is_free and len(blocks) > 1
        ]  # fmt: skip
        assert stats.inactive_split == sum(idle)
    if chosen.limit is not None:
        assert stats.reserved <= chosen.limit
    for address in alive:
        allocator.free(address)
    allocator.empty_cache()
    assert allocator.stats().reserved == device.used == 0
    assert allocator.stats().inactive_split == 0
    assert not list(allocator.segments())


@pytest.mark.parametrize("name", sorted(ALLOCATORS))
@settings(max_examples=60, deadline=None)
@given(moves=steps)
def test_nothing_overlaps(name: str, moves: list) -> None:
    allocator = ALLOCATORS[name](SimulatedDevice(256 * MIB))
    alive: dict[int, int] = {}
    for move in moves:
        if isinstance(move, tuple):
            address = allocator.allocate(*move)
            if address is not None:
                alive[address] = move[0]
        elif alive:
            address = sorted(alive)[move % len(alive)]
            allocator.free(address)
            del alive[address]
        ranges = sorted(alive.items())
        if isinstance(allocator, PagedAllocator):
            ranges = sorted((page, 2 * MIB) for one in alive for page in allocator.pages(one))
        for (start, size), (following, _) in pairwise(ranges):
            assert start + size <= following


class Lines:
    """Counts the lines of Python that run within."""

    def __enter__(self) -> "Lines":
        self.count, self._before = 0, sys.gettrace()
        sys.settrace(self._trace)
        return self

    def __exit__(self, *error: object) -> None:
        sys.settrace(self._before)

    def _trace(self, frame: object, event: str, argument: object) -> object:
        self.count += event == "line"
        return self._trace


@pytest.mark.parametrize("size", [1, 700, 3 * MIB])
def test_a_pool_takes_as_many_operations_however_full_it_is(size: int) -> None:
    counts = set()
    for alive, free in ((0, 0), (10, 10), (1000, 0), (1000, 1000), (5000, 2500)):
        allocator = SizeClassAllocator(SimulatedDevice(64 * GIB), 64 * GIB)
        blocks = [allocator.allocate(1 + one * 997 % (4 * MIB)) for one in range(alive + free)]
        for block in blocks[:free]:
            allocator.free(block)  # type: ignore[arg-type]
        # One of its size lies free, so that all take the same way.
        allocator.free(allocator.allocate(size))  # type: ignore[arg-type]
        with Lines() as lines:
            allocator.free(allocator.allocate(size))  # type: ignore[arg-type]
        counts.add(lines.count)
    assert len(counts) == 1 and counts.pop() < 40


def history(chosen: CachingSettings | None = None, total: int = GIB) -> tuple[CachingAllocator, list[Event]]:
    events: list[Event] = []
    return CachingAllocator(SimulatedDevice(total), chosen, events.append), events


def segments_of(events: list[Event]) -> list[int]:
    return [event.size for event in events if event.action == "segment_alloc"]


@pytest.mark.parametrize(
    ("request_", "block", "segment"),
    [
        (1, 512, 2 * MIB),
        (512, 512, 2 * MIB),
        (513, 1024, 2 * MIB),
        (MIB, MIB, 2 * MIB),
        (MIB + 1, MIB + 512, 20 * MIB),
        (10 * MIB - 512, 10 * MIB - 512, 20 * MIB),
        (10 * MIB, 10 * MIB, 10 * MIB),
        (10 * MIB + 1, 12 * MIB, 12 * MIB),  # 2 MiB less 512 bytes over: more than 1 MiB, so it is split below
        (11 * MIB, 12 * MIB, 12 * MIB),  # 1 MiB over is not more than 1 MiB: not split
    ],
)
def test_rounding_and_segments(request_: int, block: int, segment: int) -> None:
    allocator, events = history()
    assert allocator.allocate(request_) is not None
    assert segments_of(events) == [segment]
    rest = segment - block
    if request_ == 10 * MIB + 1:
        block, rest = 10 * MIB + 512, 2 * MIB - 512
    assert allocator.stats().allocated == block
    assert allocator.stats().inactive_split == rest


def test_best_fit_takes_the_smallest_then_the_lowest() -> None:
    allocator, _ = history()
    addresses = [allocator.allocate(size) for size in (14 * MIB, 12 * MIB, 12 * MIB, 16 * MIB)]
    for address in addresses:
        allocator.free(address)  # type: ignore[arg-type]
    assert allocator.allocate(11 * MIB + 1) == addresses[1]
    assert allocator.allocate(11 * MIB + 1) == addresses[2]
    assert allocator.allocate(11 * MIB + 1) == addresses[0]


def test_a_stream_uses_only_its_own() -> None:
    allocator, events = history()
    first = allocator.allocate(16 * MIB, 0)
    allocator.free(first)  # type: ignore[arg-type]
    assert allocator.allocate(16 * MIB, 7) != first
    assert segments_of(events) == [16 * MIB, 16 * MIB]
    assert allocator.allocate(16 * MIB, 0) == first


def test_a_pending_block_is_not_merged() -> None:
    allocator, events = history()
    first, second = allocator.allocate(512), allocator.allocate(512)
    assert first is not None and second is not None
    allocator.request_free(first)
    allocator.free(second)
    stats = allocator.stats()
    assert (stats.allocated, stats.active, stats.largest_free) == (0, 512, 2 * MIB - 512)
    allocator.complete_free(first)
    assert allocator.stats().largest_free == 2 * MIB
    assert [event.action for event in events][-4:] == [
        "free_requested", "free_requested", "free_completed", "free_completed",
    ]  # fmt: skip


def test_out_of_memory_empties_the_cache_and_tries_again() -> None:
    allocator, events = history(total=64 * MIB)
    first = allocator.allocate(30 * MIB)
    kept = allocator.allocate(20 * MIB)
    allocator.free(first)  # type: ignore[arg-type]
    assert allocator.allocate(40 * MIB) is not None
    assert [(event.action, event.size) for event in events if event.action.startswith("segment")] == [
        ("segment_alloc", 30 * MIB), ("segment_alloc", 20 * MIB), ("segment_free", 30 * MIB),
        ("segment_alloc", 40 * MIB),
    ]  # fmt: skip
    assert (allocator.stats().retries, allocator.stats().ooms) == (1, 0)
    assert allocator.allocate(10 * MIB) is None
    assert (allocator.stats().retries, allocator.stats().ooms) == (2, 1)
    assert kept is not None


def test_the_cache_may_be_large_enough_in_sum_and_not_in_one_piece() -> None:
    """What this allocator is known for: memory that is reserved, free, and of no use."""
    allocator, _ = history(total=64 * MIB)
    pieces = [allocator.allocate(5 * MIB) for _ in range(12)]
    for piece in pieces[1::2]:
        allocator.free(piece)  # type: ignore[arg-type]
    stats = allocator.stats()
    assert stats.reserved - stats.active == 30 * MIB and stats.largest_free < 12 * MIB
    assert allocator.allocate(16 * MIB) is None
    growing, _ = history(CachingSettings(expandable_segments=True), total=64 * MIB)
    pieces = [growing.allocate(5 * MIB) for _ in range(12)]
    for piece in pieces[:6]:
        growing.free(piece)  # type: ignore[arg-type]
    assert growing.allocate(16 * MIB) is not None


def test_oversize_blocks_are_neither_split_nor_wasted_on_small_requests() -> None:
    chosen = CachingSettings(max_split_size=32 * MIB)
    allocator, events = history(chosen)
    large = allocator.allocate(64 * MIB)
    allocator.free(large)  # type: ignore[arg-type]
    assert allocator.allocate(16 * MIB) != large  # below the limit: not out of a block above it
    assert allocator.allocate(40 * MIB) != large  # 24 MiB over is more than 20
    assert allocator.allocate(48 * MIB) == large
    assert allocator.stats().allocated == (16 + 40 + 64) * MIB
    assert segments_of(events) == [64 * MIB, 16 * MIB, 40 * MIB]


def test_an_oversize_segment_is_given_back_before_all_are() -> None:
    allocator, events = history(CachingSettings(max_split_size=24 * MIB), total=128 * MIB)
    first, second = allocator.allocate(60 * MIB), allocator.allocate(30 * MIB)
    small = allocator.allocate(16 * MIB)
    for address in (first, second, small):
        allocator.free(address)  # type: ignore[arg-type]
    assert allocator.allocate(90 * MIB) is not None
    freed = [event.size for event in events if event.action == "segment_free"]
    assert freed == [60 * MIB, 30 * MIB], "the largest first, until they are as much as the request"
    assert allocator.stats().retries == 0


def test_an_oversize_block_of_a_growing_segment_is_not_given_back_as_a_whole() -> None:
    chosen = CachingSettings(max_split_size=24 * MIB, expandable_segments=True)
    allocator, events = history(chosen, total=128 * MIB)
    large = allocator.allocate(60 * MIB)
    kept = allocator.allocate(20 * MIB)
    allocator.free(large)  # type: ignore[arg-type]
    assert allocator.allocate(70 * MIB) is not None  # unmapped in front, where its pages lie, and mapped behind
    assert [event.action for event in events if event.action.startswith("segment")] == [
        "segment_map", "segment_map", "segment_unmap", "segment_map",
    ]  # fmt: skip
    assert kept is not None and allocator.stats().retries == 1


def test_garbage_collection_gives_back_the_old() -> None:
    chosen = CachingSettings(garbage_collection_threshold=0.5, limit=100 * MIB)
    allocator, events = history(chosen)
    old, young = allocator.allocate(30 * MIB), allocator.allocate(28 * MIB)
    allocator.free(old)  # type: ignore[arg-type]
    for _ in range(5):
        allocator.free(allocator.allocate(12 * MIB, 1))  # type: ignore[arg-type]
    allocator.free(young)  # type: ignore[arg-type]
    assert allocator.allocate(30 * MIB + 1) is not None
    # 70 MiB are reserved, 20 above the threshold: the segment that lay idle through five searches goes, and no other.
    assert [event.size for event in events if event.action == "segment_free"] == [30 * MIB]


def test_an_expandable_segment_grows_in_place() -> None:
    allocator, events = history(CachingSettings(expandable_segments=True))
    first = allocator.allocate(5 * MIB)
    second = allocator.allocate(30 * MIB)
    assert first is not None and second == first + 5 * MIB
    mapped = [(event.address - first, event.size) for event in events if event.action == "segment_map"]
    assert mapped == [(0, 20 * MIB), (20 * MIB, 20 * MIB)]
    assert allocator.stats().reserved == 40 * MIB
    allocator.free(first)
    allocator.empty_cache()
    assert allocator.stats().reserved == 40 * MIB, "its first page is partly in use"
    allocator.free(second)
    allocator.empty_cache()
    assert allocator.stats().reserved == 0


def test_a_private_pool_keeps_to_itself() -> None:
    allocator, events = history()
    inside = allocator.allocate(16 * MIB, pool=(0, 1))
    allocator.free(inside)  # type: ignore[arg-type]
    assert allocator.allocate(16 * MIB) != inside
    allocator.empty_cache()
    assert [event for event in events if event.action == "segment_free"] == []
    allocator.abandon((0, 1))
    allocator.empty_cache()
    assert [event.address for event in events if event.action == "segment_free"] == [inside]


def test_a_size_class_never_serves_another() -> None:
    allocator = SizeClassAllocator(SimulatedDevice(16 * MIB), 8 * MIB)
    blocks = [allocator.allocate(3 * MIB) for _ in range(2)]
    assert allocator.stats().allocated == 8 * MIB
    for block in blocks:
        allocator.free(block)  # type: ignore[arg-type]
    assert allocator.allocate(MIB) is None
    assert allocator.allocate(4 * MIB) in blocks
    with pytest.raises(ValueError, match="the device has no"):
        SizeClassAllocator(SimulatedDevice(MIB), 8 * MIB)


def test_pages_need_no_neighbours() -> None:
    allocator = PagedAllocator(SimulatedDevice(16 * MIB), 10 * MIB, MIB)
    kept = [allocator.allocate(MIB) for _ in range(10)]
    for page in kept[::2]:
        allocator.free(page)  # type: ignore[arg-type]
    scattered = allocator.allocate(5 * MIB)
    assert scattered is not None and sorted(allocator.pages(scattered)) == sorted(kept[::2])  # type: ignore[type-var]
    assert allocator.stats().external_fragmentation == 0.0
