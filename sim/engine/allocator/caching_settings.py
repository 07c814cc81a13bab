"""What `PYTORCH_ALLOC_CONF` sets of PyTorch's caching allocator, and how it rounds a request."""

from __future__ import annotations

import re
from dataclasses import dataclass

MIN_BLOCK = 512  # every size is a multiple of it
MIB = 1 << 20
_LEAST_LARGE_MB = 20  # PyTorch's `kLargeBuffer`: neither size in MiB may be smaller
_ITEM = re.compile(r"\s*([^\s,:\[\]]+)\s*:\s*(\[[^\[\]]*\]|[^\s,:\[\]]+)\s*(?:,|$)")
# Powers of two that have divisions of their own: 1 MiB and all below, 2 MiB, ... 32 GiB and all above.
_INTERVALS = 16
_OF_HOST_MEMORY = (
    "pinned_use_cuda_host_register",
    "pinned_num_register_threads",
    "pinned_use_background_threads",
    "pinned_reserve_segment_size_mb",
    "release_lock_on_cudamalloc",
)


class Refused(ValueError):
    """A setting that PyTorch would refuse too; says which."""


@dataclass(frozen=True)
class CachingSettings:
    """Names and defaults are PyTorch's (`c10/core/AllocatorConfig.h`); sizes in bytes.

    Attributes:
        max_split_size: blocks this large or larger are never split; None: there are none.
        max_non_split_rounding: how much larger than the request such a block may be.
        garbage_collection_threshold: share of `limit` above which old free segments are given back; 0: never.
        roundup_power2_divisions: into how many steps each power of two is divided, to which sizes are rounded up: one
            number an interval, from 1 MiB (and all below) to 32 GiB (and all above).
        expandable_segments: one segment a stream and pool grows, instead of ever new ones.
        limit: bytes that may be reserved (`set_per_process_memory_fraction`); None: the device's, and no collection.
    """

    max_split_size: int | None = None
    max_non_split_rounding: int = 20 * MIB
    garbage_collection_threshold: float = 0.0
    roundup_power2_divisions: tuple[int, ...] = (0,) * _INTERVALS
    expandable_segments: bool = False
    limit: int | None = None

    @classmethod
    def parse(cls, conf: str, limit: int | None = None) -> CachingSettings:
        """From the text of `PYTORCH_ALLOC_CONF`; settings that do not touch device memory are passed over.

        Raises:
            ValueError: no name:value, an unknown setting, or a value that PyTorch refuses.
        """
        given: dict[str, object] = {"limit": limit}
        for name, value in _items(conf):
            try:
                if name == "max_split_size_mb":
                    given["max_split_size"] = _large_mb(name, value) * MIB
                elif name == "max_non_split_rounding_mb":
                    given["max_non_split_rounding"] = _large_mb(name, value) * MIB
                elif name == "garbage_collection_threshold":
                    given["garbage_collection_threshold"] = _share(name, value)
                elif name == "roundup_power2_divisions":
                    given["roundup_power2_divisions"] = _divisions(value)
                elif name == "expandable_segments":
                    given["expandable_segments"] = {"True": True, "False": False}[value]
                elif (name, value) != ("backend", "native") and name not in _OF_HOST_MEMORY:
                    raise Refused(f"{name}:{value} is unknown; expected those of PyTorch's native backend")
            except Refused:
                raise
            except (ValueError, KeyError) as error:
                raise Refused(f"{name} is {value!r}; expected what PYTORCH_ALLOC_CONF takes") from error
        return cls(**given)  # type: ignore[arg-type]

    def splits(self, size: int) -> bool:
        """Whether a block of that size may be split, or stand for a request that may."""
        return self.max_split_size is None or size < self.max_split_size

    def round(self, size: int) -> int:
        """The size of the block for a request (`round_size` of `c10/cuda/CUDACachingAllocator.cpp`)."""
        if size < MIN_BLOCK:
            return MIN_BLOCK
        interval = min(max(size.bit_length() - MIB.bit_length(), 0), _INTERVALS - 1)
        divisions = self.roundup_power2_divisions[interval]
        if divisions > 1 and size > MIN_BLOCK * divisions:
            return _next_division(size, divisions)
        return -(-size // MIN_BLOCK) * MIN_BLOCK


def _items(conf: str) -> list[tuple[str, str]]:
    """The pairs of name:value,name:value; like PyTorch's, they may end in a comma."""
    items, at = [], 0
    while conf[at:].strip():
        found = _ITEM.match(conf, at)
        if found is None:
            raise Refused(f"{conf[at:].strip()!r} is no setting; expected name:value, such as max_split_size_mb:128")
        items.append((found[1], found[2]))
        at = found.end()
    return items


def _large_mb(name: str, value: str) -> int:
    number = int(value)
    if number < _LEAST_LARGE_MB:
        raise Refused(f"{name} is {number}; expected at least {_LEAST_LARGE_MB}, as PyTorch does")
    return number


def _share(name: str, value: str) -> float:
    number = float(value)
    if not 0.0 < number < 1.0:
        raise Refused(f"{name} is {value}; expected more than 0 and less than 1, as PyTorch does")
    return number


def _divisions(value: str) -> tuple[int, ...]:
    """One number for all sizes; or, as in [256:1,512:2,>:8], by MiB, the first also for all below, > for all above."""
    if not value.startswith("["):
        return (_power(int(value)),) * _INTERVALS
    table, last, first = [0] * _INTERVALS, 0, True
    for entry in value.strip("[]").split(","):
        boundary, divisions = entry.split(":")
        steps = int(divisions) and _power(int(divisions))
        if boundary.strip() == ">":
            table[last + 1 :] = [steps] * (_INTERVALS - last - 1)
            continue
        last = min(_power(int(boundary)).bit_length() - 1, _INTERVALS - 1)
        table[0 if first else last : last + 1] = [steps] * (last + 1 if first else 1)
        first = False
    return tuple(table)


def _power(number: int) -> int:
    if number < 1 or number & (number - 1):
        raise ValueError(number)
    return number


def _next_division(size: int, divisions: int) -> int:
    """The next of the steps into which the power of two below `size` is divided."""
    floor = 1 << (size.bit_length() - 1)
    if floor == size:
        return size
    step = floor >> (divisions.bit_length() - 1)
    return 2 * floor if step == 0 else -(-size // step) * step
