"""PyTorch's caching allocator, decision by decision (`c10/cuda/CUDACachingAllocator.cpp`).

Freed blocks are kept, by stream and pool, and merged with free neighbours of their segment. A request takes the
smallest that is large enough; what is left over of it becomes a block of its own, where the rules allow it. Only where
none is large enough does the device give a new segment, and only where it has no more are free segments given back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from sim.engine.allocator.allocator import Event, MemoryStats
from sim.engine.allocator.caching_settings import MIN_BLOCK, CachingSettings
from sim.engine.allocator.device import Device
from sim.engine.allocator.segment import (
    SMALL,
    Block,
    FreeBlocks,
    GrowingSegment,
    Pool,
    SegmentState,
    segment_size,
)

ORDINARY: Pool = (0, 0)  # others are private, to CUDA graphs say


class CachingAllocator:
    """One device. `on_event` is told of every allocation, free and segment, as PyTorch's memory history would be."""

    def __init__(
        self, device: Device, settings: CachingSettings | None = None, on_event: Callable[[Event], None] | None = None
    ) -> None:
        self.settings = settings or CachingSettings()
        self._device = device
        self._on_event = on_event
        self._pools: dict[Pool, tuple[FreeBlocks, FreeBlocks]] = {}
        self._abandoned: set[Pool] = set()  # private pools that nothing uses any more
        self._live: dict[int, Block] = {}  # by address, in use or pending
        self._heads: dict[int, tuple[Block, Pool]] = {}  # the first block of each segment, by its address
        self._stats = MemoryStats()

    @property
    def changes(self) -> int:
        """Segments (or their pages) that the device gave and got back."""
        return self._stats.device_mallocs + self._stats.device_frees

    def allocate(self, size: int, stream: int = 0, pool: Pool = ORDINARY) -> int | None:
        rounded = self.settings.round(size)
        free = self._free_blocks(pool)[0 if rounded <= SMALL else 1]
        block = self._find(free, rounded, stream) or self._obtain(free, rounded, stream, pool)
        if block is None:
            self._stats.ooms += 1
            self._tell("oom", 0, rounded, stream)
            return None
        self._use(block, size, rounded)
        return block.address

    def free(self, address: int) -> None:
        self.request_free(address)
        self.complete_free(address)

    def request_free(self, address: int) -> None:
        """The caller is done with it; other streams may not be."""
        block = self._live[address]
        block.allocated, block.pending = False, True
        self._stats.allocated -= block.size
        self._tell("free_requested", block.address, block.requested, block.stream)

    def complete_free(self, address: int) -> None:
        """All streams are done with it."""
        block = self._live.pop(address)
        self._tell("free_completed", block.address, block.requested, block.stream)
        self._stats.active -= block.size
        self._stats.requested -= block.requested
        block.pending = False
        merged = self._join(block)
        block.pool.add(block)
        if block.growing is None:
            self._stats.inactive_split -= merged
            if block.is_split:
                self._stats.inactive_split += block.size

    def empty_cache(self) -> None:
        """Give every segment back of which nothing is in use."""
        for pool in [ORDINARY, *sorted(self._abandoned)]:
            # PyTorch goes through the ordinary large blocks first, and through a private pool's small ones.
            small, large = self._free_blocks(pool)
            for free in (large, small) if pool == ORDINARY else (small, large):
                self._release_all(free)

    def reuses(self, size: int, stream: int = 0, pool: Pool = ORDINARY) -> bool:
        """Whether such a request would be served from what is cached."""
        rounded = self.settings.round(size)
        free = self._free_blocks(pool)[0 if rounded <= SMALL else 1]
        if self._best(free, rounded, stream) is not None:
            return True
        # A segment grows from a free block on, and by nothing where that is large enough.
        room = self._cached_room(free, rounded, stream) if self.settings.expandable_segments else None
        return room is not None and room.mapped and room.size >= rounded and self._within_limit(rounded)

    def adopt(self, segment: SegmentState) -> None:
        """Take over a segment that another allocator left; its blocks' ages are not known and begin now."""
        free = self._free_blocks(segment.pool)[0 if segment.is_small else 1]
        rest = Block(segment.address, segment.size, segment.stream, free, segment.growing)
        self._heads[segment.address] = (rest, segment.pool)
        for state in segment.blocks:
            block = rest
            if state.size < block.size:
                rest = block.cut(state.size)
            block.mapped, block.allocated, block.pending = state.mapped, state.allocated, state.pending
            if block.is_free:
                free.add(block)
                if block.mapped and block.growing is None and len(segment.blocks) > 1:
                    self._stats.inactive_split += block.size
            else:
                block.requested = state.requested
                self._live[block.address] = block
                self._stats.requested += block.requested
                self._stats.active += block.size
                self._stats.allocated += block.size if block.allocated else 0
            self._stats.reserved += block.size if block.mapped else 0

    def abandon(self, pool: Pool) -> None:
        """Nothing uses a private pool any more: its segments may be given back once their blocks are free."""
        self._abandoned.add(pool)

    def stats(self) -> MemoryStats:
        return replace(self._stats, largest_free=max(free.largest for free in self._free_blocks(ORDINARY)))

    def segments(self) -> Iterator[tuple[Pool, list[Block]]]:
        """Every segment's pool and mapped blocks, in order of address."""
        for address in sorted(self._heads):
            first, pool = self._heads[address]
            block: Block | None = first
            blocks = []
            while block is not None:
                if block.mapped:
                    blocks.append(block)
                block = block.next
            yield pool, blocks

    # Finding a free block.

    def _find(self, free: FreeBlocks, size: int, stream: int) -> Block | None:
        if self._collects:
            free.searches += 1
        block = self._best(free, size, stream)
        if block is not None:
            free.remove(block)
        return block

    def _best(self, free: FreeBlocks, size: int, stream: int) -> Block | None:
        settings = self.settings
        block = free.smallest(stream, size)
        if block is not None and block.growing is not None:
            block = self._best_growing(free.from_size(stream, size))
        if block is None or (settings.splits(size) and not settings.splits(block.size)):
            return None
        if not settings.splits(size) and block.size >= size + settings.max_non_split_rounding:
            return None
        return block

    def _best_growing(self, candidates: list[Block]) -> Block | None:
        """Where the smallest candidate lies in a segment that grows: its size counts with what it could grow into."""
        if not self.settings.expandable_segments:  # switched off since: only others will do
            return next((block for block in candidates[1:] if block.growing is None), None)
        best = candidates[0]
        for block in candidates[1:]:
            if best.growing is None or block.with_room >= best.with_room:
                break
            best = block
        return best

    def _use(self, block: Block, requested: int, size: int) -> None:
        was_split = block.is_split
        rest: Block | None = None
        if self._should_split(block, size):
            rest = block.cut(size)
            block.pool.add(rest)
        if block.growing is None:
            if was_split:
                self._stats.inactive_split -= block.size
            elif rest is not None:
                self._stats.inactive_split += rest.size
        block.allocated, block.requested = True, requested
        self._live[block.address] = block
        self._stats.allocated += block.size
        self._stats.active += block.size
        self._stats.requested += requested
        self._tell("alloc", block.address, requested, block.stream)

    def _should_split(self, block: Block, size: int) -> bool:
        rest = block.size - size
        if block.pool.is_small or self.settings.expandable_segments:
            return rest >= MIN_BLOCK
        return self.settings.splits(size) and rest > SMALL

    # Getting memory of the device.

    def _obtain(self, free: FreeBlocks, size: int, stream: int, pool: Pool) -> Block | None:
        """A block of a new or grown segment, for which cached memory is given back if it has to be."""
        if self._collects:
            self._collect()
        block = self._new_block(free, size, stream, pool)
        if block is None and self._release_oversize(free, size, stream):
            block = self._new_block(free, size, stream, pool)
        if block is None:
            self.empty_cache()
            self._stats.retries += 1
            block = self._new_block(free, size, stream, pool)
        return block

    def _new_block(self, free: FreeBlocks, size: int, stream: int, pool: Pool) -> Block | None:
        if not self._within_limit(size):
            return None
        if self.settings.expandable_segments:
            return self._grow(free, size, stream, pool)
        bytes_ = segment_size(size)
        address = self._device.malloc(bytes_)
        if address is None:
            return None
        block = Block(address, bytes_, stream, free, None)
        self._heads[address] = (block, pool)
        self._stats.reserved += bytes_
        self._stats.device_mallocs += 1
        self._tell("segment_alloc", address, bytes_, stream)
        return block

    def _within_limit(self, size: int) -> bool:
        limit = self.settings.limit
        return limit is None or self._stats.reserved + segment_size(size) <= limit

    def _release(self, block: Block) -> None:
        """Give a whole, free segment back."""
        self._tell("segment_free", block.address, block.size, block.stream)
        self._device.free(block.address)
        block.pool.remove(block)
        del self._heads[block.address]
        self._stats.reserved -= block.size
        self._stats.device_frees += 1

    def _release_all(self, free: FreeBlocks) -> None:
        grown = []
        for block in free:
            if block.growing is not None:
                grown.append(block)
            elif not block.is_split:
                self._release(block)
        for block in grown:
            self._unmap(block)
            if not block.is_split:
                free.remove(block)
                del self._heads[block.address]

    def _release_oversize(self, free: FreeBlocks, size: int, stream: int) -> bool:
        """Give back blocks that are never split: one that is large enough, or else the largest until they are.

        Those of segments that grow are passed over: their pages go with `empty_cache`.
        """
        least = self.settings.max_split_size
        if least is None:
            return False
        wanted = max(size, least)
        enough = free.smallest(stream, wanted)
        if enough is not None and enough.growing is None:
            self._release(enough)
            return True
        released = 0
        for block in reversed([block for block in free.from_size(stream, least) if block.size < wanted]):
            if released >= wanted:
                break
            if block.growing is None:
                released += block.size
                self._release(block)
        return released >= wanted

    @property
    def _collects(self) -> bool:
        return self.settings.limit is not None and self.settings.garbage_collection_threshold > 0.0

    def _collect(self) -> None:
        """Give back the large segments that were free the longest, until reserved memory is below the threshold."""
        assert self.settings.limit is not None
        target = self._stats.reserved - int(self.settings.garbage_collection_threshold * self.settings.limit)
        if target <= 0:
            return
        large = self._free_blocks(ORDINARY)[1]
        whole = [block for block in large if not block.is_split]
        reclaimed = 0
        while reclaimed < target and whole:
            ages = {block.address: large.searches - block.searches_before for block in whole}
            mean = sum(ages.values()) / len(whole)
            old = [block for block in whole if ages[block.address] >= mean]
            for block in old:
                reclaimed += block.size
                self._release(block)
            whole = [block for block in whole if ages[block.address] < mean]

    # Segments that grow.

    def _grow(self, free: FreeBlocks, size: int, stream: int, pool: Pool) -> Block | None:
        block = self._room(free, size, stream, pool)
        if not block.mapped and not self._map(block, min(block.size, size)):
            return None
        while block.size < size:
            following = block.next
            assert following is not None
            if not self._map(following, min(size - block.size, following.size)):
                return None
            block = following
        free.remove(block)
        return block

    def _cached_room(self, free: FreeBlocks, size: int, stream: int) -> Block | None:
        """Where the lowest addresses begin that are free or unmapped and suffice."""
        for block in free.unmapped(stream):
            first = block.prev if block.prev is not None and block.prev.is_free else block
            room, at = 0, first
            while room < size and at is not None and at.is_free:
                room += at.size
                at = at.next  # type: ignore[assignment]
            if room >= size:
                return first
        return None

    def _room(self, free: FreeBlocks, size: int, stream: int, pool: Pool) -> Block:
        """The same; if nowhere, in a new segment."""
        if (room := self._cached_room(free, size, stream)) is not None:
            return room
        # An eighth more addresses than the device has bytes: pages that were unmapped may be needed further on.
        addresses = -(-(self._device.total + self._device.total // 8) // free.page) * free.page
        growing = GrowingSegment(self._device.reserve(addresses), addresses, free.page)
        block = Block(growing.address, growing.size, stream, free, growing)
        block.mapped = False
        self._heads[block.address] = (block, pool)
        free.add(block)
        return block

    def _map(self, block: Block, size: int) -> bool:
        """Put memory behind the first `size` bytes of an unmapped block, in whole pages, and join it with its
        neighbours."""
        growing = block.growing
        assert growing is not None
        size = -(-size // growing.page) * growing.page
        if not self._device.map(block.address, size):
            return False
        free, address = block.pool, block.address
        free.remove(block)
        if size < block.size:
            free.add(block.cut(size))
        block.mapped = True
        self._join(block)
        free.add(block)
        self._stats.reserved += size
        self._stats.device_mallocs += 1
        self._tell("segment_map", address, size, block.stream)
        return True

    def _unmap(self, block: Block) -> None:
        """Take the memory away of those pages that lie wholly in a free block."""
        growing = block.growing
        assert growing is not None
        first = -(-(block.address - growing.address) // growing.page) * growing.page + growing.address
        end = (block.address + block.size - growing.address) // growing.page * growing.page + growing.address
        if first >= end:
            return
        free = block.pool
        free.remove(block)
        if first > block.address:
            rest = block.cut(first - block.address)
            free.add(block)
            block = rest
        if end < block.address + block.size:
            free.add(block.cut(end - block.address))
        block.mapped = False
        self._join(block)
        free.add(block)
        self._device.unmap(first, end - first)
        self._stats.reserved -= end - first
        self._stats.device_frees += 1
        self._tell("segment_unmap", first, end - first, block.stream)

    def _join(self, block: Block) -> int:
        """Merge with free neighbours, and be the first of the segment where one of them was; the bytes that joined."""
        merged = block.pool.merge(block)
        if block.address in self._heads:
            self._heads[block.address] = (block, self._heads[block.address][1])
        return merged

    def _free_blocks(self, pool: Pool) -> tuple[FreeBlocks, FreeBlocks]:
        """Of small and of large requests."""
        if pool not in self._pools:
            self._pools[pool] = FreeBlocks(is_small=True), FreeBlocks(is_small=False)
        return self._pools[pool]

    def _tell(self, action: str, address: int, size: int, stream: int) -> None:
        if self._on_event is not None:
            self._on_event(Event(action, address, size, stream))
