"""The memory of one device, as an allocator asks its driver for it."""

from __future__ import annotations

from typing import Protocol

# The driver hands out physical memory in pages of this size (CUDA's smallest mapping granularity on current GPUs).
PAGE = 2 << 20


class Device(Protocol):
    """Addresses and bytes. None or False: out of memory."""

    total: int  # bytes

    def malloc(self, size: int) -> int | None:
        """`cudaMalloc`: the address of `size` bytes."""

    def free(self, address: int) -> None:
        """`cudaFree` of what `malloc` gave. The device has finished all its work when it returns."""

    def reserve(self, size: int) -> int:
        """`cuMemAddressReserve`: an address range without memory behind it."""

    def map(self, address: int, size: int) -> bool:
        """`cuMemCreate` and `cuMemMap`: memory behind a part of a range."""

    def unmap(self, address: int, size: int) -> None:
        """`cuMemUnmap` and `cuMemRelease`."""


class SimulatedDevice:
    """A device of `total` bytes. Addresses only rise, as virtual addresses are plenty: the driver never fragments.

    `mallocs` and `frees` count the calls that gave and took memory, and `moved` the bytes of both.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self.used = 0
        self.mallocs = 0
        self.frees = 0
        self.moved = 0
        self._next = PAGE
        self._sizes: dict[int, int] = {}

    def malloc(self, size: int) -> int | None:
        physical = _pages(size)
        if self.used + physical > self.total:
            return None
        self._give(physical)
        address = self.reserve(physical)
        self._sizes[address] = physical
        return address

    def free(self, address: int) -> None:
        self._take_back(self._sizes.pop(address))

    def reserve(self, size: int) -> int:
        address = self._next
        self._next += _pages(size)
        return address

    def map(self, address: int, size: int) -> bool:
        if self.used + size > self.total:
            return False
        self._give(size)
        return True

    def unmap(self, address: int, size: int) -> None:
        self._take_back(size)

    def _give(self, size: int) -> None:
        self.used += size
        self.mallocs += 1
        self.moved += size

    def _take_back(self, size: int) -> None:
        self.used -= size
        self.frees += 1
        self.moved += size


def _pages(size: int) -> int:
    return -(-size // PAGE) * PAGE
