"""What of a model's layers a pruned engine runs, and what it holds: the work that step times and memory count."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from calibrate.model import ModelShape
from calibrate.pruning import Pruning, stored_bytes
from ground.errors import UserError


@dataclass(frozen=True)
class LayerUse:
    """A pruning of one model, and how many tokens run what of it.

    `attention` and `mlp` are shares of tokens, one a layer of the whole model: 0 where nobody runs it. They are of the
    tokens that decode where tokens leave early, since prompts then run whole; else of all. `most`: tokens of a sequence
    that are held and read at most; None: all of them.
    """

    pruning: Pruning
    attention: tuple[float, ...]
    mlp: tuple[float, ...]
    most: int | None = None

    @property
    def prompts_whole(self) -> bool:
        return bool(self.pruning.exits)

    def weight_bytes(self, model: ModelShape, tp: int = 1) -> int:
        """Bytes of the weights that one rank holds: those of what some token may run."""
        pruning, rank = self.pruning, model.shard(tp)
        size = model.dtype_bytes
        mlp = sum(one.inputs * one.outputs for one in model.linears(tp) if one.name in ("gate_up_proj", "down_proj"))
        if model.experts:
            mlp = rank.experts * 3 * rank.hidden * rank.moe_intermediate + rank.hidden * rank.experts
        mlp = (mlp + rank.hidden) * size  # with the norm before it
        layer = (model.weight_bytes(tp) - _no_layers(model, tp)) // model.layers
        keys = 2 * rank.kv_heads * rank.head_dim * rank.hidden * size
        return (
            model.weight_bytes(tp)
            - layer * len(pruning.skipped)
            - mlp * (len(pruning.kept) - len(pruning.mlps))
            - keys * (len(pruning.kept) - len(pruning.keeping))
        )

    def kv_bytes_per_token(self, model: ModelShape, tp: int = 1) -> int:
        """Bytes of keys and values that one token keeps on one rank, all layers."""
        rank, dtype = model.shard(tp), self.pruning.kv_dtype
        vector = rank.head_dim * rank.dtype_bytes if dtype is None else stored_bytes(dtype, rank.head_dim)
        return 2 * len(self.pruning.keeping) * rank.kv_heads * vector


def layer_use(pruning: Pruning, block_size: int, shares: Sequence[float] | None = None) -> LayerUse:
    """The use of a pruning. Where the input decides, `shares` says how many tokens run a layer, or its MLP: one a layer
    of the whole model.

    Raises:
        UserError: the shares are needed and not given, are of another number of layers, or rise where tokens leave.
    """
    attention = [0.0 if layer in pruning.skipped else 1.0 for layer in range(pruning.layers)]
    mlp = [1.0 if layer in pruning.mlps else 0.0 for layer in range(pruning.layers)]
    if pruning.by_input:
        if shares is None:
            raise UserError("what the input decides was not measured: nobody says how many tokens run each layer")
        if len(shares) != pruning.layers:
            raise UserError(f"shares are of {len(shares)} layers; expected {pruning.layers}, one a layer of the model")
        mlp = [share if runs else 0.0 for share, runs in zip(shares, mlp, strict=True)]
        if pruning.exits:
            attention = [share if runs else 0.0 for share, runs in zip(shares, attention, strict=True)]
            running = [shares[layer] for layer in pruning.kept]
            if running[0] < 1.0 or running != sorted(running, reverse=True):
                raise UserError("shares of tokens that leave early: expected 1 first, and no more at any later layer")
    return LayerUse(pruning, tuple(attention), tuple(mlp), pruning.most_tokens(block_size))


def _no_layers(model: ModelShape, tp: int) -> int:
    """Bytes of one rank's weights beside the layers."""
    rank = model.shard(tp)
    return ((1 if rank.tied_embeddings else 2) * rank.vocab + 1) * rank.hidden * rank.dtype_bytes
