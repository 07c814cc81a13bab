"""What a pruned model leaves out of its layers, and by what rule: the real decoder does it, the simulator counts it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

KvDtype = Literal["int8", "fp8"]

_SCALE_BYTES = {"int8": 4, "fp8": 0}


def stored_bytes(dtype: KvDtype, head_dim: int) -> int:
    """Bytes of the `head_dim` values of one head of one token, with the scale beside them."""
    return head_dim + _SCALE_BYTES[dtype]


@dataclass(frozen=True)
class Pruning:
    """One pruned model of `layers` layers. A policy that is not given leaves everything as it is.

    Attributes:
        skipped: layers that nobody runs; they keep no keys and values.
        without_mlp: layers of which only the attention runs.
        group: of the layers that run, so many in a row read the keys and values of the first of them.
        sinks, window: a token attends to the first `sinks` tokens and to the last `window`, itself among them.
        budget, recent: of each sequence so many tokens are kept, by KV head those that were attended to the most, and
            the last `recent` of them in any case.
        kv_dtype: what keys and values are stored in; the model's own type if not given.
        exits, confidence: after these layers a token that decodes leaves if the likeliest next token is ahead of the
            second by `confidence`, as probabilities. Later layers take keys and values from the state it left with.
        similarity, first: a token passes by the MLP of a layer, from `first` on, if the MLP that ran before it turned
            the token so little that the cosine of before and after is at least `similarity`.
    """

    layers: int
    skipped: frozenset[int] = frozenset()
    without_mlp: frozenset[int] = frozenset()
    group: int = 1
    sinks: int = 0
    window: int | None = None
    budget: int | None = None
    recent: int = 0
    kv_dtype: KvDtype | None = None
    exits: tuple[int, ...] = ()
    confidence: float = 1.0
    similarity: float | None = None
    first: int = 1

    @property
    def kept(self) -> list[int]:
        """The layers that run, rising."""
        return [layer for layer in range(self.layers) if layer not in self.skipped]

    @property
    def kv_of(self) -> dict[int, int]:
        """Of each layer that runs, the layer whose keys and values it reads."""
        kept = self.kept
        return {layer: kept[place - place % self.group] for place, layer in enumerate(kept)}

    @property
    def keeping(self) -> list[int]:
        """The layers that keep keys and values, rising."""
        return sorted(set(self.kv_of.values()))

    @property
    def mlps(self) -> list[int]:
        """The layers whose MLP runs, of all tokens or of some, rising."""
        return [layer for layer in self.kept if layer not in self.without_mlp]

    @property
    def by_input(self) -> bool:
        """Whether what a token runs depends on the token."""
        return bool(self.exits) or self.similarity is not None

    def most_tokens(self, block_size: int) -> int | None:
        """Tokens of one sequence whose keys and values are held at most, in whole blocks; None: all of them.

        A window needs a block more than its length: the one that the newest token stands in is not full, and the one
        that leaves the window has not left it with all its tokens. `sinks`, `window` and `budget` are whole blocks.
        """
        if self.window is not None:
            return self.sinks + self.window + block_size
        return self.budget
