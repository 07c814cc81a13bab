"""One tier of memory for KV blocks: which it has, where each lies, and who leaves."""

from __future__ import annotations

from collections.abc import Container, Sequence

from sim.engine.offload.replacement import REPLACEMENTS


class Tier:
    """Blocks by name, in places `first` to `first + blocks - 1`.

    A block is there from `place` on, and can be read once its write has ended. Whoever writes or reads it keeps it
    pinned meanwhile.
    """

    def __init__(self, blocks: int, eviction: str, *, first: int = 0) -> None:
        self.total = blocks
        self._names = REPLACEMENTS[eviction](blocks)
        self._first = first
        self._place_of: dict[int, int] = {}
        self._pins: dict[int, int] = {}  # name → copies under way that read or write it
        self._writing: set[int] = set()

    @property
    def used(self) -> int:
        return len(self._names)

    @property
    def unpinned(self) -> int:
        """Blocks that are free or could leave."""
        return self.total - len(self._pins)

    @property
    def names(self) -> list[int]:
        return list(self._names)

    def __contains__(self, name: object) -> bool:
        """Whether it is there or being written."""
        return name in self._place_of

    def is_pinned(self, name: int) -> bool:
        return name in self._pins

    def can_read(self, name: int) -> bool:
        return name in self._place_of and name not in self._writing

    def place_of(self, name: int) -> int:
        return self._place_of[name]

    def touch(self, names: Sequence[int]) -> None:
        """They were used; the last first, so that the end of a prefix leaves before its start."""
        for name in reversed(names):
            self._names.touch(name)

    def make_place(self, names: Sequence[int]) -> list[int]:
        """Make places for as many of `names`, from the first on, as find any; they are pinned until `written`.

        None of them is there. Blocks that are being read or written do not leave for them. Returns the places.
        """
        count = min(len(names), self.unpinned)
        coming = names[:count]
        self.pin(coming)  # first: none of them leaves for another
        self._writing.update(coming)
        pinned = self._pins.keys()  # another object for every call, as `Replacement.insert` wants
        for name in reversed(coming):
            self._place_of[name] = self._take(name, pinned)
        return [self._place_of[name] for name in coming]

    def _take(self, name: int, pinned: Container[int]) -> int:
        leaving = self._names.insert(name, pinned)
        if leaving is not None:
            return self._place_of.pop(leaving)
        return self._first + len(self._names) - 1  # none has left yet, and none leaves before all places are taken

    def written(self, names: Sequence[int]) -> None:
        """They are there."""
        self._writing.difference_update(names)
        self.unpin(names)

    def pin(self, names: Sequence[int]) -> None:
        for name in names:
            self._pins[name] = self._pins.get(name, 0) + 1

    def unpin(self, names: Sequence[int]) -> None:
        for name in names:
            if self._pins[name] == 1:
                del self._pins[name]
            else:
                self._pins[name] -= 1
