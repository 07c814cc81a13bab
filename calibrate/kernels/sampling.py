"""Greedy sampling."""

import torch


def greedy(logits: torch.Tensor) -> torch.Tensor:
    """[S, vocab] → the likeliest token of each sequence, [S]."""
    return logits.argmax(dim=-1)
