"""Into how many parts the contexts of a decode batch are cut. Without torch: a simulation asks it too."""

from __future__ import annotations

# Decodes are split along their contexts until the device has about this many programs a multiprocessor: enough bytes on
# their way to fill the memory's latency. More of them have more to merge.
_PROGRAMS_PER_MULTIPROCESSOR = 4
_MOST = 64


def splits_on(sequences: int, kv_heads: int, multiprocessors: int) -> int:
    """Parts of each context, however long it is: short ones leave some of them empty."""
    wanted = _PROGRAMS_PER_MULTIPROCESSOR * multiprocessors
    return min(max(1, round(wanted / (_rounded(sequences) * kv_heads))), _MOST)


def _rounded(sequences: int) -> int:
    """As a batch is padded that is replayed from a graph: alike are cut alike, replayed or not."""
    if sequences <= 16:
        return 1 << (max(1, sequences) - 1).bit_length()
    step = 8 if sequences <= 32 else 16
    return -(-sequences // step) * step
