"""The token ids of a request's prompt: made from its prefix ids and its number alone, so any two replays agree.

They are drawn at random or, for a model whose tokens are bytes, cut from a text: what such a model goes on to say, and
so which layers its tokens run, depends on what it is asked.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

# The first word of a seed keeps shared blocks and a request's own tail in separate streams.
_SHARED, _OWN = 0, 1


def prompt_ids(
    request_id: int,
    prompt_tokens: int,
    prefix_ids: Sequence[int] = (),
    prefix_block_tokens: int = 16,
    *,
    vocabulary: int,
    seed: int = 0,
    text: bytes | None = None,
) -> list[int]:
    """Token ids of one prompt, `prompt_tokens` long, each in [0, vocabulary); pieces of `text` if one is given.

    Block i is drawn from a stream seeded by `prefix_ids[i]`: equal id, equal tokens. Different ids give independent
    draws, equal with chance `vocabulary ** -tokens`. What the ids do not cover is drawn from a stream of the request's
    own. A last id that stands for a partial block gives the first tokens of its block.
    """
    prompt: list[int] = []
    for prefix_id in prefix_ids:
        tokens = min(prefix_block_tokens, prompt_tokens - len(prompt))
        if tokens <= 0:
            break
        # A whole block is drawn and then cut: the tokens of an id must not depend on who asks for how many.
        prompt += _draw((seed, _SHARED, prefix_id), prefix_block_tokens, vocabulary, text)[:tokens]
    tail = prompt_tokens - len(prompt)
    if tail > 0:
        prompt += _draw((seed, _OWN, request_id), tail, vocabulary, text)
    return prompt


def prompt_of(row: Mapping[str, Any], *, vocabulary: int, seed: int = 0, text: bytes | None = None) -> list[int]:
    """The prompt of one row of a request table."""
    return prompt_ids(
        row["request_id"],
        row["prompt_tokens"],
        row.get("prefix_ids") or (),
        row.get("prefix_block_tokens") or 16,
        vocabulary=vocabulary,
        seed=seed,
        text=text,
    )


def _draw(stream: tuple[int, int, int], tokens: int, vocabulary: int, text: bytes | None) -> list[int]:
    words = [word & 0xFFFF_FFFF_FFFF_FFFF for word in stream]  # a prefix id may be any signed 64-bit number
    random = np.random.default_rng(words)
    if text is not None:
        start = int(random.integers(len(text)))
        return [text[(start + place) % len(text)] for place in range(tokens)]
    drawn: list[int] = random.integers(0, vocabulary, tokens).tolist()
    return drawn
