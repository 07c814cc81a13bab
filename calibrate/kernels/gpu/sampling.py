"""Greedy sampling in two steps: the likeliest token of each piece of the vocabulary, and the likeliest of those."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from calibrate.kernels.gpu.early_start import await_previous, let_next_start, starts_early

_PIECE = 4096  # of the vocabulary, for one program


def greedy(logits: torch.Tensor) -> torch.Tensor:
    """[S, vocab], contiguous → the likeliest token of each sequence, [S]; of equals the first."""
    sequences, vocab = logits.shape
    pieces = triton.cdiv(vocab, _PIECE)
    best = logits.new_empty(sequences, pieces, dtype=torch.float32)
    places = torch.empty_like(best, dtype=torch.int32)
    tokens = torch.empty(sequences, dtype=torch.int64, device=logits.device)
    early = starts_early(logits.device)
    _best_of_pieces[(sequences, pieces)](
        logits, best, places, VOCAB=vocab, PIECE=_PIECE, EARLY=early, num_warps=8, launch_pdl=early
    )
    _best_of_all[(sequences,)](
        best,
        places,
        tokens,
        PIECES=pieces,
        TILE=triton.next_power_of_2(pieces),
        EARLY=early,
        num_warps=1,
        launch_pdl=early,
    )
    return tokens


@triton.jit
def _best_of_pieces(
    logits: tl.tensor,
    best: tl.tensor,
    places: tl.tensor,
    VOCAB: tl.constexpr,
    PIECE: tl.constexpr,
    EARLY: tl.constexpr,
) -> None:
    let_next_start(EARLY)
    await_previous(EARLY)
    sequence, piece, pieces = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    columns = piece * PIECE + tl.arange(0, PIECE)
    values = tl.load(logits + sequence.to(tl.int64) * VOCAB + columns, mask=columns < VOCAB, other=float("-inf"))
    top, place = tl.max(values.to(tl.float32), axis=0, return_indices=True, return_indices_tie_break_left=True)
    tl.store(best + sequence * pieces + piece, top)
    tl.store(places + sequence * pieces + piece, piece * PIECE + place)


@triton.jit
def _best_of_all(
    best: tl.tensor,
    places: tl.tensor,
    tokens: tl.tensor,
    PIECES: tl.constexpr,
    TILE: tl.constexpr,
    EARLY: tl.constexpr,
) -> None:
    let_next_start(EARLY)
    await_previous(EARLY)
    sequence = tl.program_id(0)
    piece = tl.arange(0, TILE)
    tops = tl.load(best + sequence * PIECES + piece, mask=piece < PIECES, other=float("-inf"))
    _, winner = tl.max(tops, axis=0, return_indices=True, return_indices_tie_break_left=True)
    tl.store(tokens + sequence, tl.load(places + sequence * PIECES + winner).to(tl.int64))
