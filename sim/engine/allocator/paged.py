"""A pool of equal pages: no request needs neighbours, so none fails while enough pages are free anywhere.

What paged attention does for the KV cache (Kwon et al., 2023). Only the last page of a request is partly wasted.
"""

from __future__ import annotations

from dataclasses import replace

from sim.engine.allocator.allocator import MemoryStats
from sim.engine.allocator.device import Device


class PagedAllocator:
    """An allocation is known by the address of its first page; `pages` gives them all.

    Raises ValueError if the device has no `pool_bytes`.
    """

    def __init__(self, device: Device, pool_bytes: int, page: int) -> None:
        start = device.malloc(pool_bytes)
        if start is None:
            raise ValueError(f"the device has no {pool_bytes} bytes for the pool")
        self._page = page
        self._free = [start + page * number for number in reversed(range(pool_bytes // page))]
        self._live: dict[int, tuple[list[int], int]] = {}  # first page → pages, bytes asked for
        self._stats = MemoryStats(reserved=pool_bytes, device_mallocs=1)

    @property
    def changes(self) -> int:
        """None: all pages are equal."""
        return 0

    def allocate(self, size: int, stream: int = 0) -> int | None:
        count = -(-size // self._page)
        if count > len(self._free):
            self._stats.ooms += 1
            return None
        pages = [self._free.pop() for _ in range(count)]
        self._live[pages[0]] = pages, size
        self._count(size, count)
        return pages[0]

    def pages(self, address: int) -> list[int]:
        return self._live[address][0]

    def free(self, address: int) -> None:
        pages, size = self._live.pop(address)
        self._free += reversed(pages)
        self._count(-size, -len(pages))

    def stats(self) -> MemoryStats:
        return replace(self._stats, largest_free=len(self._free) * self._page)

    def _count(self, size: int, pages: int) -> None:
        self._stats.requested += size
        self._stats.allocated += pages * self._page
        self._stats.active += pages * self._page
