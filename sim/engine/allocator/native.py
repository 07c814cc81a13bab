"""cudaMalloc and cudaFree for every block: nothing is kept, nothing is wasted but time.

A free waits until the device has done all its work, so it is a synchronisation; both are counted for whoever knows
what they take.
"""

from __future__ import annotations

from dataclasses import replace

from sim.engine.allocator.allocator import MemoryStats
from sim.engine.allocator.device import Device

_GRANULARITY = 512  # addresses are multiples of it, at least


class NativeAllocator:
    def __init__(self, device: Device) -> None:
        self._device = device
        self._live: dict[int, tuple[int, int]] = {}  # address → bytes asked for, bytes taken
        self._stats = MemoryStats()

    @property
    def changes(self) -> int:
        """None, as it keeps nothing."""
        return 0

    def allocate(self, size: int, stream: int = 0) -> int | None:
        taken = -(-size // _GRANULARITY) * _GRANULARITY
        address = self._device.malloc(taken)
        if address is None:
            self._stats.ooms += 1
            return None
        self._live[address] = size, taken
        self._count(size, taken)
        self._stats.device_mallocs += 1
        return address

    def free(self, address: int) -> None:
        size, taken = self._live.pop(address)
        self._device.free(address)
        self._count(-size, -taken)
        self._stats.device_frees += 1

    def stats(self) -> MemoryStats:
        return replace(self._stats)

    def _count(self, size: int, taken: int) -> None:
        self._stats.requested += size
        self._stats.allocated += taken
        self._stats.active += taken
        self._stats.reserved += taken
