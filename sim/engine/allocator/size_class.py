"""A pool taken from the device at once and cut into powers of two: constant time, and up to half of it wasted.

Each stream has its own free blocks of each size. A block keeps its size for ever: what one size has freed no other can
use, which is the price of never searching and never merging.
"""

from __future__ import annotations

from dataclasses import replace

from sim.engine.allocator.allocator import MemoryStats
from sim.engine.allocator.device import Device

_SMALLEST = 512


class SizeClassAllocator:
    """Raises ValueError if the device has no `pool_bytes`."""

    def __init__(self, device: Device, pool_bytes: int) -> None:
        start = device.malloc(pool_bytes)
        if start is None:
            raise ValueError(f"the device has no {pool_bytes} bytes for the pool")
        self._start = start
        self._next, self._end = start, start + pool_bytes  # of what is not cut yet
        self._free: dict[tuple[int, int], list[int]] = {}  # by stream and size
        self._live: dict[int, tuple[int, int, int]] = {}  # address → stream, size, bytes asked for
        self._stats = MemoryStats(reserved=pool_bytes, device_mallocs=1)

    @property
    def changes(self) -> int:
        """Bytes of the pool that have been cut into blocks."""
        return self._next - self._start

    def allocate(self, size: int, stream: int = 0) -> int | None:
        rounded = max(_SMALLEST, 1 << (size - 1).bit_length())
        free = self._free.setdefault((stream, rounded), [])
        if free:
            address = free.pop()
        elif self._next + rounded <= self._end:
            address = self._next
            self._next += rounded
        else:
            self._stats.ooms += 1
            return None
        self._live[address] = stream, rounded, size
        self._count(size, rounded)
        return address

    def free(self, address: int) -> None:
        stream, rounded, size = self._live.pop(address)
        self._free[stream, rounded].append(address)
        self._count(-size, -rounded)

    def stats(self) -> MemoryStats:
        free = [size for (_, size), addresses in self._free.items() if addresses]
        uncut = self._end - self._next
        largest = max([*free, 1 << (uncut.bit_length() - 1) if uncut else 0])
        return replace(self._stats, largest_free=largest)

    def _count(self, size: int, rounded: int) -> None:
        self._stats.requested += size
        self._stats.allocated += rounded
        self._stats.active += rounded
