"""Token embedding: a row of the table for each token."""

import torch


def embedding(tokens: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """[T] ids, [vocab, hidden] → [T, hidden]."""
    return torch.nn.functional.embedding(tokens, table)
