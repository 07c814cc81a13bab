"""Segments of device memory, cut into blocks that know their neighbours, and the free ones of a pool in order."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sim.engine.allocator.caching_settings import MIB

SMALL = MIB  # the largest request of the small pool
SMALL_SEGMENT = 2 * MIB
LARGE_SEGMENT = 20 * MIB
_MIN_LARGE = 10 * MIB  # from here on a segment is as large as its request
_ROUND_LARGE = 2 * MIB

Pool = tuple[int, int]


def segment_size(size: int) -> int:
    """Bytes of a new segment for a rounded request."""
    if size <= SMALL:
        return SMALL_SEGMENT
    if size < _MIN_LARGE:
        return LARGE_SEGMENT
    return -(-size // _ROUND_LARGE) * _ROUND_LARGE


@dataclass(frozen=True)
class GrowingSegment:
    """A range of addresses behind which memory is mapped as it is needed, in pages of `page` bytes."""

    address: int
    size: int
    page: int


@dataclass(frozen=True)
class BlockState:
    """A block as a layout tells it; free if it is neither allocated nor pending."""

    size: int
    requested: int = 0
    allocated: bool = False
    pending: bool = False
    mapped: bool = True


@dataclass(frozen=True)
class SegmentState:
    """A segment and all of its blocks, in order of address; their sizes add up to its own."""

    address: int
    size: int
    stream: int
    is_small: bool
    pool: Pool
    blocks: Sequence[BlockState]
    growing: GrowingSegment | None = None


class Block:
    """A part of a segment: in use, waiting for other streams after its free (`pending`), or free."""

    __slots__ = (
        "address",
        "allocated",
        "growing",
        "mapped",
        "next",
        "pending",
        "pool",
        "prev",
        "requested",
        "searches_before",
        "size",
        "stream",
    )

    def __init__(self, address: int, size: int, stream: int, pool: FreeBlocks, growing: GrowingSegment | None) -> None:
        self.address = address
        self.size = size
        self.stream = stream
        self.pool = pool
        self.growing = growing
        self.mapped = True  # only an address range in a growing segment is not
        self.requested = 0
        self.allocated = False
        self.pending = False
        self.prev: Block | None = None
        self.next: Block | None = None
        self.searches_before = 0  # searches of its pool when it was freed

    @property
    def is_split(self) -> bool:
        """Whether it is only a part of its segment."""
        return self.prev is not None or self.next is not None

    @property
    def is_free(self) -> bool:
        return not self.allocated and not self.pending

    @property
    def with_room(self) -> int:
        """Its size, with what it could grow into."""
        following = self.next
        return self.size + (following.size if following is not None and not following.mapped else 0)

    def cut(self, size: int) -> Block:
        """Shorten it to its first `size` bytes; returns the rest, as its new neighbour."""
        rest = Block(self.address + size, self.size - size, self.stream, self.pool, self.growing)
        rest.mapped = self.mapped
        rest.prev, rest.next = self, self.next
        if self.next is not None:
            self.next.prev = rest
        self.next = rest
        self.size = size
        return rest


class FreeBlocks:
    """The free blocks of a pool, by stream, size and address; and where nothing is mapped, by stream and address."""

    def __init__(self, *, is_small: bool) -> None:
        self.is_small = is_small
        self.page = SMALL_SEGMENT if is_small else LARGE_SEGMENT  # by which its segments grow, where they do
        self.searches = 0
        self._order: list[tuple[int, int, int]] = []
        self._blocks: dict[int, Block] = {}
        self._unmapped_order: list[tuple[int, int]] = []
        self._unmapped: dict[int, Block] = {}

    def __iter__(self) -> Iterator[Block]:
        """In order; blocks may be taken out meanwhile."""
        return iter([self._blocks[address] for _, _, address in self._order])

    def add(self, block: Block) -> None:
        if not block.mapped:
            insort(self._unmapped_order, (block.stream, block.address))
            self._unmapped[block.address] = block
            return
        block.searches_before = self.searches
        insort(self._order, (block.stream, block.size, block.address))
        self._blocks[block.address] = block

    def remove(self, block: Block) -> None:
        if not block.mapped:
            del self._unmapped_order[bisect_left(self._unmapped_order, (block.stream, block.address))]
            del self._unmapped[block.address]
            return
        del self._order[bisect_left(self._order, (block.stream, block.size, block.address))]
        del self._blocks[block.address]

    def from_size(self, stream: int, size: int) -> list[Block]:
        """The stream's blocks of `size` or more, smallest first."""
        first = bisect_left(self._order, (stream, size, -1))
        last = bisect_left(self._order, (stream + 1, -1, -1))
        return [self._blocks[address] for _, _, address in self._order[first:last]]

    def smallest(self, stream: int, size: int) -> Block | None:
        """The stream's smallest block of `size` or more, the lowest address of equals."""
        at = bisect_left(self._order, (stream, size, -1))
        if at == len(self._order) or self._order[at][0] != stream:
            return None
        return self._blocks[self._order[at][2]]

    @property
    def largest(self) -> int:
        """Bytes of the largest block, of any stream."""
        largest, end = 0, len(self._order)
        while end:
            stream, size, _ = self._order[end - 1]
            largest = max(largest, size)
            end = bisect_left(self._order, (stream, -1, -1))
        return largest

    def unmapped(self, stream: int) -> list[Block]:
        """Of the stream, lowest address first."""
        first = bisect_left(self._unmapped_order, (stream, -1))
        last = bisect_left(self._unmapped_order, (stream + 1, -1))
        return [self._unmapped[address] for _, address in self._unmapped_order[first:last]]

    def merge(self, block: Block) -> int:
        """Join a block that is not among these with its free neighbours, which are; how many bytes they had."""
        before = block.size
        prev = block.prev
        if prev is not None and prev.is_free and prev.mapped == block.mapped:
            self.remove(prev)
            block.address = prev.address
            block.size += prev.size
            block.prev = prev.prev
            if block.prev is not None:
                block.prev.next = block
        next_ = block.next
        if next_ is not None and next_.is_free and next_.mapped == block.mapped:
            self.remove(next_)
            block.size += next_.size
            block.next = next_.next
            if block.next is not None:
                block.next.prev = block
        return block.size - before
