"""Excerpts of held-out documents, and a decoder that reads them: of every byte the distribution of the next one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from calibrate.decoder import Decoder, SequenceInput
from validate.quality.text import Document
from validate.quality.train import TRAINED_LENGTH

# Of each document so many excerpts at most: more would be much like those that there are.
_OF_A_DOCUMENT = 2


@dataclass(frozen=True)
class Excerpt:
    """So many bytes of a document, and behind each the one to predict."""

    document: int
    tokens: list[int]
    following: list[int]


def excerpts(documents: Sequence[Document], length: int = TRAINED_LENGTH) -> list[Excerpt]:
    """The first excerpts of each document, of `length` bytes or, of a short document, fewer."""
    found = []
    for index, document in enumerate(documents):
        text = list(document.text)
        for start in range(0, min(_OF_A_DOCUMENT * length, len(text) - 1), length):
            part = text[start : start + length + 1]
            found.append(Excerpt(index, part[:-1], part[1:]))
    return found


def blocks_of(count: int, length: int, block_size: int) -> list[list[int]]:
    """KV blocks of `count` sequences of up to `length` tokens."""
    each = -(-length // block_size)
    return [list(range(index * each, (index + 1) * each)) for index in range(count)]


def read(decoder: Decoder, texts: Sequence[Excerpt], *, one_by_one: bool) -> list[torch.Tensor]:
    """Log probabilities of the next byte behind every byte, float64 [tokens, 256] an excerpt, in nats.

    `one_by_one`: a token of every excerpt at a time, as they decode; else each excerpt at once.
    """
    blocks = blocks_of(len(texts), max(len(text.tokens) for text in texts), decoder.block_size)
    if not one_by_one:
        rows = decoder.logits([SequenceInput(text.tokens, 0, own) for text, own in zip(texts, blocks, strict=True)])
        return [row.double().log_softmax(-1) for row in rows]
    found: list[list[torch.Tensor]] = [[] for _ in texts]
    for place in range(max(len(text.tokens) for text in texts)):
        reading = [index for index, text in enumerate(texts) if place < len(text.tokens)]
        rows = decoder.logits([SequenceInput([texts[i].tokens[place]], place, blocks[i]) for i in reading])
        for index, row in zip(reading, rows, strict=True):
            found[index].append(row)
    return [torch.cat(rows).double().log_softmax(-1) for rows in found]


def go_on(decoder: Decoder, texts: Sequence[Excerpt]) -> None:
    """Read the first half of each excerpt as a prompt, then go on greedily for as long again.

    What a `PrunedDecoder` counts in `ran` is cleared behind the prompts.
    """
    blocks = blocks_of(len(texts), max(len(text.tokens) for text in texts), decoder.block_size)
    halves = [text.tokens[: len(text.tokens) // 2] for text in texts]
    tokens = decoder.step([SequenceInput(half, 0, own) for half, own in zip(halves, blocks, strict=True)])
    if hasattr(decoder, "ran"):
        decoder.ran.clear()
    for place in range(max(map(len, halves)) - 1):
        going = [index for index, half in enumerate(halves) if place < len(half) - 1]
        batch = [SequenceInput([tokens[i]], len(halves[i]) + place, blocks[i]) for i in going]
        for index, token in zip(going, decoder.step(batch), strict=True):
            tokens[index] = token
