"""A decoder that leaves out what a `Pruning` says, of every token alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from calibrate.decoder import Decoder, Layout, SequenceInput
from calibrate.heavy_hitters import HeavyHitters
from calibrate.kept_kv import AllKv, HeavyHitterKv, KeptKv, WindowKv
from calibrate.kernels.backend import uses_triton
from calibrate.kernels.linear import product
from calibrate.kernels.rmsnorm import add_rmsnorm, rmsnorm
from calibrate.kernels.rotary import rotary
from calibrate.kv_codec import KvCodec
from calibrate.model import ModelShape
from calibrate.pruning import Pruning
from calibrate.weights import LayerWeights
from calibrate.window_attention import Window
from ground.errors import UserError

Rotation = tuple[torch.Tensor, torch.Tensor]


@dataclass
class LayerRuns:
    """How many of `tokens` computed each layer's attention and each layer's MLP, of the whole model's layers."""

    layers: int
    tokens: int = 0
    attention: list[int] = field(default_factory=list)
    mlp: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self.tokens = 0
        self.attention, self.mlp = [0] * self.layers, [0] * self.layers


def make_decoder(
    model: ModelShape,
    *,
    pruning: Pruning | None = None,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    kv_blocks: int,
    block_size: int = 16,
    seed: int = 0,
    weights: Path | None = None,
) -> Decoder:
    """A decoder of the model, pruned or not; the other arguments are those of `Decoder`.

    Raises:
        UserError: as `Decoder` and `PrunedDecoder`.
    """
    settings: dict[str, Any] = {
        "device": device,
        "dtype": dtype,
        "kv_blocks": kv_blocks,
        "block_size": block_size,
        "seed": seed,
        "weights": weights,
    }
    if pruning is None:
        return Decoder(model, **settings)
    if pruning.by_input:
        from calibrate.rule_decoder import RuleDecoder

        return RuleDecoder(model, pruning=pruning, **settings)
    return PrunedDecoder(model, pruning=pruning, **settings)


class PrunedDecoder(Decoder):
    """Layers and MLPs left out, keys and values shared by layers, cut to a window or a budget, or quantised.

    On a GPU only layers and MLPs are left out, by the kernels of every decoder; the rest is torch's own operators and
    runs on a CPU. What nobody runs is not held in memory.
    """

    def __init__(self, model: ModelShape, *, pruning: Pruning, **settings: Any) -> None:
        """`settings` are those of `Decoder`.

        Raises:
            UserError: as that; or the pruning is of another number of layers, needs a CPU, or is not of whole blocks.
        """
        if pruning.layers != model.layers:
            raise UserError(f"the pruning is of {pruning.layers} layers; {model.name} has {model.layers}")
        self.pruning = pruning
        self.ran = LayerRuns(model.layers)
        self._codec: KvCodec | None = None
        if pruning.kv_dtype is not None:
            self._codec = KvCodec(pruning.kv_dtype, model.head_dim, settings.get("dtype", torch.float32))
        super().__init__(model, **settings)
        changed = pruning.group > 1 or pruning.by_input or self._codec is not None
        bounded = pruning.window is not None or pruning.budget is not None
        if (changed or bounded) and uses_triton(self.device):
            raise UserError(
                f"of all pruning {self.device.type} runs skip_layers and skip_mlp; expected --device cpu for the rest"
            )
        for tokens in (pruning.sinks, pruning.window or 0, pruning.budget or 0):
            if tokens % self.block_size:
                raise UserError(
                    f"sinks, window and budget are whole blocks of {self.block_size} tokens; found {tokens}"
                )
        # The place of every keeping layer's cache in `caches`.
        self.cache_of = {layer: place for place, layer in enumerate(pruning.keeping)}
        self.kv: KeptKv | None = self._kept_kv() if changed or bounded else None
        self._queries = model.heads * model.head_dim
        for index in range(model.layers):
            self.weights.layers[index] = self._cut(index, self.weights.layers[index])

    @property
    def takes_graphs(self) -> bool:
        """Whether its steps may be replayed from captured graphs: nothing but layers and MLPs is left out."""
        return self.kv is None

    def new_caches(self, slots: int) -> list[torch.Tensor]:
        """Those of the layers that keep keys and values; packed ones are [slots, 2, kv_heads, bytes], of uint8."""
        model, codec = self.model, self._codec
        width, dtype = (codec.width, torch.uint8) if codec is not None else (model.head_dim, self.dtype)
        shape = (slots, 2, model.kv_heads, width)
        return [torch.zeros(shape, device=self.device, dtype=dtype) for _ in self.pruning.keeping]

    def _kept_kv(self) -> KeptKv:
        pruning, size = self.pruning, self.block_size
        if pruning.window is not None:
            rules = Window(pruning.sinks, pruning.window, size, self._tile_tokens, self.dtype)
            return WindowKv(rules, size, self._codec)
        if pruning.budget is not None:
            slots, heads = len(self.caches[0]), self.model.kv_heads
            layers = {
                layer: HeavyHitters(slots, heads, pruning.budget, pruning.recent, self.device)
                for layer in pruning.keeping
            }
            return HeavyHitterKv(layers, size, pruning.budget)
        return AllKv(size, self._codec)

    def _cut(self, index: int, layer: LayerWeights) -> LayerWeights:
        """A layer's weights without those that nobody reads."""
        pruning, none = self.pruning, layer.input_norm.new_empty(0)
        if index in pruning.skipped:
            return LayerWeights(none, none, None, None, none, none, none, none)
        if pruning.kv_of[index] != index:
            layer = replace(layer, qkv_proj=layer.qkv_proj[: self._queries].clone())
        if index in pruning.without_mlp:
            layer = replace(layer, post_norm=none, gate_up_proj=none, down_proj=none)
        return layer

    def layout(self, batch: Sequence[SequenceInput]) -> Layout:
        """Pack a batch and plan how it attends to what is kept."""
        if self.kv is None or isinstance(self.kv, AllKv):
            layout = super().layout(batch)
            return layout if self.kv is None else replace(layout, attention=(layout.attention, layout.slots))  # type: ignore[arg-type]
        assert isinstance(self.kv, WindowKv | HeavyHitterKv)
        order = self.order(batch)
        packed = [batch[index] for index in order]
        new, starts = [len(one.tokens) for one in packed], [one.start for one in packed]
        places = self.sources(packed)
        plan: Any = self.kv.plan(starts, new, [one.blocks for one in packed])
        return Layout(
            tokens=torch.tensor([token for one in packed for token in one.tokens]),
            positions=torch.tensor([one.start + place for one in packed for place in range(len(one.tokens))]),
            slots=torch.empty(0, dtype=torch.int64),
            last=torch.tensor(new).cumsum(0) - 1,
            attention=plan,
            order=order,
            sources=torch.tensor(np.repeat(places, new)) if max(places, default=-1) >= 0 else None,
        )

    def hidden(self, layout: Layout) -> torch.Tensor:
        """The normalised hidden state behind the last layer that runs, [T, hidden]."""
        pruning, weights, eps = self.pruning, self.weights, self.model.rms_eps
        rotation = self.rotation(layout)
        residual = self.embedded(layout)
        parts = torch.zeros_like(residual)[None]
        kept: dict[int, Any] = {}  # by layer, what its keys and values are read from
        self.ran.tokens += len(residual)
        for index in pruning.kept:
            layer = weights.layers[index]
            x = add_rmsnorm(parts, residual, layer.input_norm, eps)
            parts = product(self.attended_to_kept(index, x, rotation, layout, kept), layer.o_proj)
            self.ran.attention[index] += len(residual)
            if index not in pruning.without_mlp:
                x = add_rmsnorm(parts, residual, layer.post_norm, eps)
                parts = self.mlp(x, layer)
                self.ran.mlp[index] += len(residual)
        return add_rmsnorm(parts, residual, weights.final_norm, eps)

    def attended_to_kept(
        self, index: int, x: torch.Tensor, rotation: Rotation, layout: Layout, kept: dict[int, Any]
    ) -> torch.Tensor:
        """What the heads of a layer find in what is kept, [T, hidden] → [T, features]."""
        layer = self.weights.layers[index]
        if self.kv is None:
            return self.attended(x, layer, self.caches[self.cache_of[index]], rotation, layout)
        source = self.pruning.kv_of[index]
        if source == index:
            heads = product(x, layer.qkv_proj, in_parts=False)[0].view(len(x), -1, self.model.head_dim)
            query, kv = heads[:, : self.model.heads], heads[:, self.model.heads :]
            kept[index] = self.kv.write(
                index, self.rotated_kv(kv, layer, rotation), self.caches[self.cache_of[index]], layout.attention
            )
        else:
            query = product(x, layer.qkv_proj, in_parts=False)[0].view(len(x), -1, self.model.head_dim)
        return self.kv.attend(self.rotated_query(query, layer, rotation), kept[source], layout.attention)

    def rotated_query(self, query: torch.Tensor, layer: LayerWeights, rotation: Rotation) -> torch.Tensor:
        """[T, heads, head_dim], normalised where the model does that, and rotated."""
        if layer.query_norm is not None:
            query = rmsnorm(query, layer.query_norm, self.model.rms_eps)
        query = query.contiguous()
        rotary(query, *rotation)
        return query

    def rotated_kv(self, kv: torch.Tensor, layer: LayerWeights, rotation: Rotation) -> torch.Tensor:
        """Keys and then values, [T, 2·kv_heads, head_dim] → [T, 2, kv_heads, head_dim], the keys as the queries."""
        kv = kv.reshape(len(kv), 2, self.model.kv_heads, -1).contiguous()
        if layer.key_norm is not None:
            kv[:, 0] = rmsnorm(kv[:, 0], layer.key_norm, self.model.rms_eps)
        rotary(kv[:, 0], *rotation)
        return kv

    @torch.inference_mode()
    def logits(self, batch: Sequence[SequenceInput]) -> list[torch.Tensor]:
        """The same as every decoder's, where each new token is treated as one that decodes: what a budget gives up is
        given up after each of them."""
        if self.pruning.budget is None or all(len(one.tokens) == 1 for one in batch):
            return super().logits(batch)
        found = []
        for one in batch:
            rows = [
                super(PrunedDecoder, self).logits([SequenceInput([token], one.start + place, one.blocks)])[0]
                for place, token in enumerate(one.tokens)
            ]
            found.append(torch.cat(rows))
        return found
