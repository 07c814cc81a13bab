"""Whole prompts, and their chain ids, from rows that hold only what is new in their turn."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import polars as pl

from ground.errors import UserError
from traces.readers.raw import RawTable
from traces.readers.segments import BlockIds, Chain

PLAIN_BLOCK = 16  # where the source has no ids, and so no block size of its own
_USUAL = (512, 256, 128, 64, 32, 16)


def block_tokens(raw: RawTable, tokens: pl.Series, ids: pl.Series) -> int:
    """The block size that the file does not state: the one for which every row has an id a block begun.

    n ids for t tokens hold for sizes from t/n up to, not including, t/(n − 1). Of the sizes that hold for all rows the
    largest usual one is taken.

    Raises:
        UserError: no usual size holds for all rows.
    """
    rows = pl.DataFrame({"tokens": tokens, "ids": ids.list.len()}).drop_nulls().filter(pl.col("ids") > 0)
    least = int(rows.select((pl.col("tokens") / pl.col("ids")).ceil().max()).item() or 1)
    several = rows.filter(pl.col("ids") > 1)
    below = several.select((pl.col("tokens") / (pl.col("ids") - 1)).min()).item() if len(several) else float("inf")
    fitting = [size for size in _USUAL if least <= size < below]
    if not fitting:
        raise UserError(
            f"{raw.path}: key 'hash_ids': found between {least} and {below:g} tokens an id, expected one id for every "
            f"block begun, of {', '.join(map(str, _USUAL))} tokens"
        )
    return fitting[0]


def delta_prompts(
    session: pl.Series,
    new_tokens: pl.Series,
    output: pl.Series,
    mode: Sequence[str],
    ids: pl.Series | None,
    block: int,
) -> tuple[list[int], list[list[int]]]:
    """(prompt tokens, chain ids of full blocks) of each row; all arguments have one entry a row, turns in order.

    An id of the source names the content of one block, a row without ids is content of its own. An answer that the
    next turn repeats is part of the ids of the row that it answers.
    """
    block_ids = BlockIds(block)
    chains: dict[str, Chain] = {}
    tokens_before: dict[str, int] = {}
    prompts: list[int] = []
    prefixes: list[list[int]] = []
    hash_ids = [None] * len(session) if ids is None else ids.to_list()
    for row, (name, new, answer, how, given) in enumerate(
        zip(session, new_tokens, output, mode, hash_ids, strict=True)
    ):
        whole = how.startswith("message_array")
        chain = Chain(block_ids) if whole else chains.setdefault(name, Chain(block_ids))
        _add_row(chain, row, new, given, block)
        prompts.append(new + (0 if whole else tokens_before.get(name, 0)))
        tokens_before[name] = prompts[-1]
        if how == "deltas_without_responses":
            chain.extend(("answer", row), answer)
            tokens_before[name] += answer
        prefixes.append(list(chain.ids))
    return prompts, prefixes


def _add_row(chain: Chain, row: int, new: int, given: Sequence[int] | None, block: int) -> None:
    if not given:
        chain.extend(("row", row), new)
        return
    for place, block_id in enumerate(given):
        segment: Hashable = block_id
        chain.extend(segment, min(block, new - place * block))
