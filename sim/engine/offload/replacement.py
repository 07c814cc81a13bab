"""What a tier asks of the rule by which its blocks make room for others, and the rules by name.

A rule knows names and their order, no memory. Pinned names, which a copy reads or writes, are passed over.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from typing import Protocol

from sim.engine.offload.arc import Arc
from sim.engine.offload.lru import Lru


class Replacement(Protocol):
    """The names in a tier of fixed capacity."""

    def __len__(self) -> int: ...

    def __contains__(self, name: int) -> bool: ...

    def __iter__(self) -> Iterator[int]: ...

    def touch(self, name: int) -> None:
        """It was used. What is not in the tier is left alone."""

    def insert(self, name: int, pinned: Container[int]) -> int | None:
        """It comes in; who had to leave for it. The caller has checked that it is not in the tier, and that there is
        room or somebody who is not pinned. With the same object `pinned` the same names are, and all that came in."""


REPLACEMENTS: dict[str, Callable[[int], Replacement]] = {"lru": Lru, "arc": Arc}
