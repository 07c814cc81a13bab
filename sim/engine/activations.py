"""The tensors that a forward pass makes and drops, in order: what an eager engine asks of its device allocator.

The order and lifetimes are those of vLLM's Llama (`vllm/model_executor/models/llama.py`, run without a graph): norms,
rotary embedding and the sums into the residual stream work in place, attention writes into the KV cache, and a tensor
lives until the name that holds it is bound anew or its function returns. Of a mixture of experts they are those of
`vllm/model_executor/layers/fused_moe`. Sampling is greedy: the logits, once more in float32, and one index a sequence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import NamedTuple

from calibrate.model import ModelShape

_FLOAT32, _INT64 = 4, 8


class Move(NamedTuple):
    """A tensor begins to exist, or ends."""

    tensor: str
    begins: bool


Sizes = Mapping[str, int]  # tensor → bytes


def _moves(text: str) -> tuple[Move, ...]:
    """ "+name" begins, "-name" ends."""
    return tuple(Move(word[1:], word[0] == "+") for word in text.split())


# What is alive between two layers: the layer's input and the residual stream.
BETWEEN_LAYERS = "hidden"

_ALL_REDUCED = "+partial +{0} -partial"  # ranks add up what each has of a tensor, into a new one
_MLP = "+gate_up +product -gate_up {down} -product"
_EXPERTS = "+router_logits +choice +gate_up +product +chosen -gate_up -product {down} -chosen -choice -router_logits"


class Activations:
    """Of one rank of `tp`.

    Attributes:
        before: the moves before the first layer.
        layer: those of one layer, which is entered and left with the same tensors alive.
        after: those behind the last, at whose end nothing is alive.
    """

    def __init__(self, model: ModelShape, tp: int = 1) -> None:
        self._model = model
        self._rank = model.shard(tp)
        self._tp = tp
        self.layers = model.layers
        reduced = _ALL_REDUCED if tp > 1 else "+{0}"
        mlp = (_EXPERTS if model.experts else _MLP).format(down=reduced.format("hidden"))
        self.before = _moves(f"{reduced.format('residual')} +hidden")
        self.layer = _moves(f"+qkv +attended {reduced.format('projected')} -qkv -attended -hidden {mlp} -projected")
        logits = "+shard +logits -shard" if tp > 1 else "+logits"
        self.after = _moves(f"-residual +last {logits} +scores +sampled -scores -logits -last -hidden -sampled")

    @property
    def tensors(self) -> int:
        """Made by one pass."""
        one_layer = sum(move.begins for move in self.layer)
        return one_layer * self.layers + sum(move.begins for move in (*self.before, *self.after))

    def sizes(self, tokens: int, sequences: int) -> Sizes:
        """Bytes of each tensor of a step that computes so many tokens and samples for so many sequences."""
        rank, bytes_ = self._rank, self._model.dtype_bytes
        hidden = tokens * rank.hidden * bytes_
        heads = rank.heads * rank.head_dim
        # Each token goes to several experts, and is there as often.
        copies, width = (
            (tokens * rank.experts_per_token, rank.moe_intermediate) if rank.experts else (tokens, rank.intermediate)
        )
        sizes = {
            "residual": hidden,
            "hidden": hidden,
            "partial": hidden,
            "projected": hidden,
            "qkv": tokens * (heads + 2 * rank.kv_heads * rank.head_dim) * bytes_,
            "attended": tokens * heads * bytes_,
            "gate_up": copies * 2 * width * bytes_,
            "product": copies * width * bytes_,
            "last": sequences * rank.hidden * bytes_,
            "shard": sequences * rank.vocab * bytes_,
            "logits": sequences * self._model.vocab * bytes_,
            "scores": sequences * self._model.vocab * _FLOAT32,
            "sampled": sequences * _INT64,
        }
        if rank.experts:
            sizes |= {
                "router_logits": tokens * rank.experts * bytes_,
                "choice": copies * (_FLOAT32 + _INT64),
                "chosen": copies * rank.hidden * bytes_,
            }
        return sizes

    def most(self, sizes: Sizes) -> tuple[Sequence[Move], int]:
        """Of `before`, `layer` and `after`, in which of them and after which of its moves the most bytes are alive."""
        alive, most = 0, -1
        where: tuple[Sequence[Move], int] = self.before, 0
        for moves in (self.before, self.layer, self.after):
            for index, (tensor, begins) in enumerate(moves):
                alive += sizes[tensor] if begins else -sizes[tensor]
                if alive > most:
                    most, where = alive, (moves, index)
        return where

    def bytes_made(self, sizes: Sizes) -> int:
        """Sum of all tensors that one pass makes, be they alive at once or not."""
        in_layer = sum(sizes[tensor] for tensor, begins in self.layer if begins)
        once = sum(sizes[tensor] for tensor, begins in chain(self.before, self.after) if begins)
        return in_layer * self.layers + once
