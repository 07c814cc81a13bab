"""Which keys and values a pruned decoder keeps, in what form, and how it attends to them.

Where not everything is kept, `plan` says once a step how packed sequences attend: by their cached and new tokens, and
their blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch

from calibrate.heavy_hitters import HeavyHitters, KeptSpan
from calibrate.kernels.attention import AttentionPlan, paged_attention
from calibrate.kv_codec import KvCodec
from calibrate.window_attention import Window, WindowPlan, window_attention, write


class KeptKv(Protocol):
    """A rule for all layers."""

    def write(self, layer: int, kv: torch.Tensor, cache: torch.Tensor, plan: Any) -> Any:
        """Keep the new keys and values of a layer, [T, 2, kv_heads, head_dim]; returns what `attend` reads."""

    def attend(self, query: torch.Tensor, kept: Any, plan: Any) -> torch.Tensor:
        """Of any layer that reads it: [T, heads, head_dim] → [T, heads·head_dim]."""


class AllKv:
    """Everything is kept, as it is or packed. Its plan: a whole cache's, and the slots of the new tokens, [T]."""

    def __init__(self, block_size: int, codec: KvCodec | None) -> None:
        self._size = block_size
        self._codec = codec

    def write(
        self, layer: int, kv: torch.Tensor, cache: torch.Tensor, plan: tuple[AttentionPlan, torch.Tensor]
    ) -> torch.Tensor:
        cache.index_copy_(0, plan[1], self._codec.pack(kv) if self._codec else kv)
        return cache

    def attend(self, query: torch.Tensor, kept: torch.Tensor, plan: tuple[AttentionPlan, torch.Tensor]) -> torch.Tensor:
        return paged_attention(query, kept, self._size, plan[0], self._codec.unpack if self._codec else None)


class WindowKv:
    """The sinks and a sliding window, as they are or packed."""

    def __init__(self, rules: Window, block_size: int, codec: KvCodec | None) -> None:
        self._rules = rules
        self._size = block_size
        self._codec = codec

    def plan(self, starts: Sequence[int], new: Sequence[int], blocks: Sequence[Sequence[int]]) -> WindowPlan:
        return self._rules.plan(starts, new, blocks)

    def write(self, layer: int, kv: torch.Tensor, cache: torch.Tensor, plan: WindowPlan) -> Any:
        codec = self._codec
        stored = codec.pack(kv) if codec else kv
        # A prompt's tokens see each other as a later token will see them.
        read = codec.unpack(stored) if codec else kv
        return cache, write(cache, read, stored, plan, codec.unpack if codec else None)

    def attend(self, query: torch.Tensor, kept: Any, plan: WindowPlan) -> torch.Tensor:
        cache, of_spans = kept
        return window_attention(query, cache, of_spans, self._size, plan, self._codec.unpack if self._codec else None)


class HeavyHitterKv:
    """A budget of tokens, those that were attended to the most."""

    def __init__(self, layers: dict[int, HeavyHitters], block_size: int, budget: int) -> None:
        self._layers = layers
        self._size = block_size
        self._blocks = budget // block_size

    def plan(self, starts: Sequence[int], new: Sequence[int], blocks: Sequence[Sequence[int]]) -> list[KeptSpan]:
        spans = []
        first = 0
        for start, tokens, of in zip(starts, new, blocks, strict=True):
            held = torch.tensor(of[: min(self._blocks, -(-(start + tokens) // self._size))])
            slots = (held[:, None] * self._size + torch.arange(self._size)).view(-1)
            spans.append(KeptSpan(first, first + tokens, start, slots))
            first += tokens
        return spans

    def write(self, layer: int, kv: torch.Tensor, cache: torch.Tensor, plan: list[KeptSpan]) -> Any:
        return self._layers[layer], kv, cache  # what is kept depends on the attention

    def attend(self, query: torch.Tensor, kept: Any, plan: list[KeptSpan]) -> torch.Tensor:
        layer, kv, cache = kept
        attended: torch.Tensor = layer.attend(query, kv, cache, plan)
        return attended
