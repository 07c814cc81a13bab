"""Allocators of device memory, by name. A new one is one file here and one line in `ALLOCATORS`."""

from collections.abc import Callable

from sim.engine.allocator.allocator import Allocator
from sim.engine.allocator.caching import CachingAllocator
from sim.engine.allocator.device import PAGE, Device
from sim.engine.allocator.native import NativeAllocator
from sim.engine.allocator.paged import PagedAllocator
from sim.engine.allocator.size_class import SizeClassAllocator

# What takes a pool of its own takes the whole device; a page is what vLLM's KV block of an 8B model takes, all layers.
_KV_PAGE = 2 << 20

ALLOCATORS: dict[str, Callable[[Device], Allocator]] = {
    "native": NativeAllocator,
    "caching": CachingAllocator,
    "size_class": lambda device: SizeClassAllocator(device, device.total // PAGE * PAGE),
    "paged": lambda device: PagedAllocator(device, device.total // _KV_PAGE * _KV_PAGE, _KV_PAGE),
}
