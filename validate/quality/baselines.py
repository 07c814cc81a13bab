"""What needs no model: how many bits a byte the held-out text takes under byte pairs, and under gzip."""

from __future__ import annotations

import gzip
from collections.abc import Sequence

import numpy as np

from validate.quality.text import Document

_BYTES = 256


def bigram_bits(training: Sequence[Document], held_out: Sequence[Document]) -> float:
    """Bits a byte of the held-out documents under the training documents' byte pairs, each counted one more often.

    The first byte of a document follows none and is not counted.
    """
    counts = np.ones((_BYTES, _BYTES))
    for document in training:
        first, second = _pairs(document)
        np.add.at(counts, (first, second), 1)
    bits = -np.log2(counts / counts.sum(axis=1, keepdims=True))
    total, number = 0.0, 0
    for document in held_out:
        first, second = _pairs(document)
        total += float(bits[first, second].sum())
        number += len(first)
    return total / number


def gzip_bits(held_out: Sequence[Document]) -> float:
    """Bits a byte of the held-out documents, compressed as one file at gzip's best level."""
    together = b"".join(document.text for document in held_out)
    return 8 * len(gzip.compress(together, compresslevel=9, mtime=0)) / len(together)


def _pairs(document: Document) -> tuple[np.ndarray, np.ndarray]:
    text = np.frombuffer(document.text, np.uint8)
    return text[:-1], text[1:]
