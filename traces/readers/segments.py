"""From content segments of any length to chain ids of equal blocks.

Some traces name what a prompt is made of (a passage, an earlier answer) and not blocks of tokens. Laid end to end the
segments are a chain; it is cut into blocks, and a block's id stands for the id of the block before it and for the
pieces of segments that fill it. So equal ids mean equal segments from the very start up to the end of the block, with
no chance of a hash collision. A block that the segments do not fill gets no id, since what follows is not known.
"""

from __future__ import annotations

from collections.abc import Hashable

_Piece = tuple[Hashable, int, int]  # segment, first token of it, tokens


class BlockIds:
    """The ids that one trace has given out so far; its chains share them."""

    def __init__(self, block_tokens: int) -> None:
        self.block_tokens = block_tokens
        self._known: dict[tuple[int, tuple[_Piece, ...]], int] = {}

    def id_of(self, parent: int, pieces: tuple[_Piece, ...]) -> int:
        return self._known.setdefault((parent, pieces), len(self._known))


class Chain:
    """A chain that grows: `ids` are those of its full blocks."""

    def __init__(self, block_ids: BlockIds) -> None:
        self.ids: list[int] = []
        self._block_ids = block_ids
        self._pieces: list[_Piece] = []
        self._room = block_ids.block_tokens

    def extend(self, segment: Hashable, tokens: int) -> None:
        """Add a segment of that many tokens; the same segment always has the same tokens."""
        start = 0
        while tokens - start >= self._room:
            self._pieces.append((segment, start, self._room))
            start += self._room
            parent = self.ids[-1] if self.ids else -1
            self.ids.append(self._block_ids.id_of(parent, tuple(self._pieces)))
            self._pieces, self._room = [], self._block_ids.block_tokens
        if start < tokens:
            self._pieces.append((segment, start, tokens - start))
            self._room -= tokens - start
