"""Shared prefixes and the chain ids of blocks that follow from them."""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field, PositiveInt

from ground.spec import Spec
from traces.streams import stream
from traces.synth.lengths import Count, zipf_ranks

Ints = NDArray[np.int64]


class Prefixes(Spec):
    """Every session (or single request) opens with the prefix of one group, such as a system prompt.

    Group g is chosen with probability ∝ 1/(g + 1)^zipf. `tokens` is the length of a group's prefix, drawn once a
    group; it comes on top of the drawn prompt length.
    """

    groups: PositiveInt
    tokens: Count
    zipf: float = Field(0.0, ge=0)  # 0: all groups equally popular

    def draw(self, seed: int, size: int) -> tuple[Ints, Ints]:
        """(group of each of `size` sessions, prefix tokens of each group)."""
        return (
            zipf_ranks(stream(seed, "prefix groups"), self.groups, self.zipf, size),
            self.tokens.draw(stream(seed, "prefix tokens"), self.groups),
        )


def chain_ids(tokens: Ints, session: Ints, group: Ints, prefix_tokens: Ints, block_tokens: int) -> pl.Series:
    """The ids of the full blocks of each request's prompt and output.

    `tokens` (prompt + output) and `session` have one entry a request; `group` one a session; `prefix_tokens` one a
    group. Blocks wholly inside the shared prefix carry the group's ids, all later ones the session's: a later turn's
    list begins with the whole list of the turn before it. A partial block gets no id, since its content still grows.
    """
    blocks = tokens // block_tokens
    shared_by_group = prefix_tokens // block_tokens
    shared = shared_by_group[group[session]]
    group_base = np.cumsum(shared_by_group) - shared_by_group
    own = np.zeros(len(group), dtype=np.int64)
    np.maximum.at(own, session, np.maximum(blocks - shared, 0))
    own_base = shared_by_group.sum() + np.cumsum(own) - own

    place = np.arange(blocks.sum()) - np.repeat(np.cumsum(blocks) - blocks, blocks)
    in_prefix = place < np.repeat(shared, blocks)
    ids = place + np.where(
        in_prefix, np.repeat(group_base[group[session]], blocks), np.repeat(own_base[session] - shared, blocks)
    )
    rows = pl.DataFrame({"row": np.arange(len(tokens))})
    lists = (
        pl.DataFrame({"row": np.repeat(np.arange(len(tokens)), blocks), "id": ids})
        .group_by("row", maintain_order=True)
        .agg("id")
    )
    joined = rows.join(lists, on="row", how="left", maintain_order="left")
    return joined["id"].fill_null(pl.Series([[]], dtype=pl.List(pl.Int64))).alias("prefix_ids")
