"""What every allocator of device memory does, and what it is judged by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol


class Event(NamedTuple):
    """Something that an allocator did; the names of the actions are those of PyTorch's memory history."""

    action: str
    address: int
    size: int
    stream: int


@dataclass
class MemoryStats:
    """Bytes and counts at one moment; the counts are since the beginning.

    Attributes:
        requested: what callers asked for and still hold.
        allocated: the blocks that hold it.
        active: these, and blocks that wait for other streams after their free.
        reserved: what the allocator has of the device.
        inactive_split: free parts of segments that are partly in use, which cannot be given back.
        largest_free: the largest free block.
    """

    requested: int = 0
    allocated: int = 0
    active: int = 0
    reserved: int = 0
    inactive_split: int = 0
    largest_free: int = 0
    device_mallocs: int = 0
    device_frees: int = 0
    retries: int = 0
    ooms: int = 0

    @property
    def internal_fragmentation(self) -> float:
        """Share of the blocks in use that nobody asked for."""
        return 1.0 - self.requested / self.active if self.active else 0.0

    @property
    def external_fragmentation(self) -> float:
        """Share of the reserved memory that lies idle in free blocks."""
        return 1.0 - self.active / self.reserved if self.reserved else 0.0


class Allocator(Protocol):
    """An allocator of one device; a block freed on a stream is for that stream alone to use again."""

    @property
    def changes(self) -> int:
        """Rises when it takes memory to keep, and when it gives some of that back. While it stays, what has been freed
        since leaves no trace."""

    def allocate(self, size: int, stream: int = 0) -> int | None:
        """The address of at least `size` bytes (`size` > 0); None if the device is out of memory."""

    def free(self, address: int) -> None:
        """Give back what `allocate` gave.

        Raises:
            KeyError: nothing is allocated there.
        """

    def stats(self) -> MemoryStats:
        """As of now; what comes later does not change it."""
