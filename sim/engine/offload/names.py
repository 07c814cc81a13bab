"""Names of KV blocks: of equal content, whoever computed it, as prefix ids are."""

from __future__ import annotations

from collections.abc import Iterator

from sim.engine.block_pool import Holding, Span


def block_names(holding: Holding, first: int, end: int) -> list[int]:
    """Of a request's blocks `first` to `end - 1`, as far as its prefix ids go."""
    per_key, keys = holding.blocks_per_key, holding.keys
    if per_key == 1:
        return list(keys[first:end])
    end = min(end, len(keys) * per_key)
    return [keys[block // per_key] * per_key + block % per_key for block in range(first, end)]


def last_names(span: Span, count: int) -> Iterator[tuple[int, int]]:
    """(name, physical block) of a span's last `count` blocks, the last first; none of blocks under no id."""
    if not span.count:
        return
    per_key, keys, at, ids = span.per_key, span.keys, span.at, span.ids
    for index in range(len(ids) - 1, max(-1, len(ids) - 1 - count), -1):
        yield keys[at + index // per_key] * per_key + index % per_key, ids[index]
