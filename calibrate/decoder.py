"""A Llama-family decoder with a paged KV cache: what the microbenchmarks time is what the real engine runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from calibrate.kernels.attention import AttentionPlan, paged_attention, plan_decodes, plan_prefill
from calibrate.kernels.backend import uses_triton
from calibrate.kernels.embedding import embedding
from calibrate.kernels.gpu.paged_plan import PagedPlan, plan_paged
from calibrate.kernels.gpu.upload import upload
from calibrate.kernels.linear import gate_up_product, product
from calibrate.kernels.qk_norm import qk_norm
from calibrate.kernels.rmsnorm import add_rmsnorm
from calibrate.kernels.rotary import rotary_tables
from calibrate.kernels.rotary_write import rotary_write
from calibrate.kernels.sampling import greedy
from calibrate.kernels.silu_mul import silu_mul
from calibrate.model import ModelShape
from calibrate.weights import DecoderWeights, LayerWeights, load_weights, random_weights
from ground.errors import UserError

if TYPE_CHECKING:
    from calibrate.decode_graphs import DecodeGraphs

# Keys and values that one decode tile of a CPU gathers: half of a core's second-level cache.
_TILE_BYTES = 1 << 20

# The sampled tokens stay at one address, which graphs may hold; so their number has a limit.
_MAX_SEQUENCES = 1 << 14


def dtype_of(model: ModelShape) -> torch.dtype:
    """What its weights and activations are kept in."""
    return torch.float32 if model.dtype_bytes == 4 else torch.bfloat16


@dataclass(frozen=True)
class SequenceInput:
    """One sequence of a step: its new tokens, behind `start` cached ones, kept in the physical `blocks`.

    `blocks` cover `start + len(tokens)` tokens; whole leading blocks may be shared with other sequences.
    With `previous` the single token is the one that this row of the batch launched before samples, and the one in
    `tokens` only holds its place: the host need not know it.
    `samples`: of how many of its last tokens the next one is asked for, which verifies that many less one of them.
    """

    tokens: Sequence[int]
    start: int
    blocks: Sequence[int]
    previous: int | None = None
    samples: int = 1


@dataclass(frozen=True)
class Layout:
    """A packed batch on the device: decoding sequences (on a CPU by falling context), then the prefills."""

    tokens: torch.Tensor  # [T]
    positions: torch.Tensor  # [T]
    slots: torch.Tensor  # [T], where each token's keys and values go
    last: torch.Tensor  # [N], the index of each token whose next one is sampled: mostly the last of each sequence
    attention: AttentionPlan | PagedPlan
    order: list[int]  # batch index of each packed sequence
    sources: torch.Tensor | None = None  # [T], which sampled token stands for the given one; -1: none
    samples: Sequence[int] | None = None  # of each packed sequence; None: one of each


class Launched:
    """A step under way on the device.

    `graph`: whether it is replayed from a captured graph, and not launched kernel by kernel. `padded_to`: to how many
    sequences its batch was padded, which it is without a GPU too; None where it was not.
    """

    def __init__(
        self,
        sampled: torch.Tensor,
        order: Sequence[int],
        *,
        graph: bool,
        padded_to: int | None,
        samples: Sequence[int] | None = None,
    ) -> None:
        self.graph = graph
        self.padded_to = padded_to
        self._order = order
        self._samples = samples  # of each packed sequence; None: one of each
        self._arrived: torch.cuda.Event | None = None
        if sampled.device.type == "cuda":
            self._host = torch.empty(sampled.shape, dtype=sampled.dtype, pin_memory=True)
            self._host.copy_(sampled, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record()
        else:
            self._host = sampled.clone()

    def tokens(self) -> list[int]:
        """The greedy next token of each sequence of the batch; waits until the step has ended."""
        if self._samples is not None:
            return [sampled[-1] for sampled in self.samples()]
        if self._arrived is not None:
            self._arrived.synchronize()
        tokens = [0] * len(self._order)
        for index, token in zip(self._order, self._host.tolist(), strict=True):
            tokens[index] = token
        return tokens

    def samples(self) -> list[list[int]]:
        """The greedy next token behind each of the `samples` last tokens of each sequence; waits likewise."""
        if self._samples is None:
            return [[token] for token in self.tokens()]
        if self._arrived is not None:
            self._arrived.synchronize()
        sampled = iter(self._host.tolist())
        out: list[list[int]] = [[]] * len(self._order)
        for index, count in zip(self._order, self._samples, strict=True):
            out[index] = list(islice(sampled, count))
        return out


class Decoder:
    """The model and its KV cache on one device, in greedy decoding.

    `weights` is a safetensors file, or a folder of them, with Hugging Face names; without it the weights are drawn
    from `seed`. Block `b` holds the cache slots `b · block_size` and following; behind the `kv_blocks` lies one more,
    `padding_block`, to which no sequence belongs.

    A step passes through `launch`, which on a GPU returns at once, and `Launched.tokens`, which waits. `sampled` keeps
    the last step's tokens on the device. Once `DecodeGraphs` has captured its graphs, steps that only decode replay
    them.
    """

    def __init__(
        self,
        model: ModelShape,
        *,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        kv_blocks: int,
        block_size: int = 16,
        seed: int = 0,
        weights: Path | None = None,
    ) -> None:
        if model.experts:
            raise UserError(f"{model.name}: a mixture of experts; the decoder runs dense models only")
        self.model = model
        self.device = torch.device(device)
        self.dtype = dtype
        self.block_size = block_size
        self.padding_block = kv_blocks
        self.graphs: DecodeGraphs | None = None
        self.weights: DecoderWeights = (
            load_weights(weights, model, self.device, dtype)
            if weights is not None
            else random_weights(model, self.device, dtype, seed)
        )
        self.caches = self.new_caches((kv_blocks + 1) * block_size)
        self.sampled = torch.zeros(_MAX_SEQUENCES, dtype=torch.int64, device=self.device)
        self._sampled_at: list[int] = []  # where in `sampled` each row of the last batch has its token
        self.cos, self.sin = rotary_tables(model, self.device, dtype, model.max_context)
        kv_bytes = 2 * model.kv_heads * model.head_dim * dtype.itemsize
        self._tile_tokens = max(block_size, _TILE_BYTES // kv_bytes)

    @property
    def ahead(self) -> bool:
        """Whether `launch` returns before the step has run."""
        return self.device.type == "cuda"

    def step(self, batch: Sequence[SequenceInput]) -> list[int]:
        """Run one forward pass; return the greedy next token of each sequence. Keys and values are written in place."""
        return self.launch(batch).tokens()

    @torch.inference_mode()
    def launch(self, batch: Sequence[SequenceInput]) -> Launched:
        """Begin a step. Steps run in the order of their launches, so the next may be launched before this one ends.

        Raises:
            UserError: more sequences, or more samples of them, than a step takes.
            ValueError: `previous` is no row of the batch launched before, or stands for more than one token.
        """
        if len(batch) > _MAX_SEQUENCES:
            raise UserError(f"a step of {len(batch)} sequences; expected at most {_MAX_SEQUENCES}")
        size, graph, samples = None, False, None
        if self.graphs is not None and (size := self.graphs.size_for(batch)) is not None:
            order, graph = self.graphs.run(batch, size)
        else:
            layout = self.layout(batch)
            self.sample(layout)
            order, samples = layout.order, layout.samples
        self._sampled_at = [0] * len(order)
        if samples is None:
            for place, index in enumerate(order):
                self._sampled_at[index] = place
            return Launched(self.sampled[: len(order)], order, graph=graph, padded_to=size)
        for end, index in zip(accumulate(samples), order, strict=True):
            self._sampled_at[index] = end - 1
        return Launched(self.sampled[: sum(samples)], order, graph=graph, padded_to=size, samples=samples)

    def layout(self, batch: Sequence[SequenceInput]) -> Layout:
        """Pack a batch and plan its attention."""
        order = self.order(batch)
        packed = [batch[index] for index in order]
        new = np.array([len(sequence.tokens) for sequence in packed])
        starts = np.array([sequence.start for sequence in packed])
        ends = new.cumsum()
        positions = np.arange(new.sum()) + np.repeat(starts - ends + new, new)
        plan = self.plan(new.tolist(), (starts + new).tolist(), [sequence.blocks for sequence in packed])
        samples = [one.samples for one in packed] if any(one.samples > 1 for one in packed) else None
        last = ends - 1
        if samples is not None:
            if sum(samples) > _MAX_SEQUENCES:
                raise UserError(f"a step that samples {sum(samples)} tokens; expected at most {_MAX_SEQUENCES}")
            last = np.concatenate([np.arange(end - count, end) for end, count in zip(ends, samples, strict=True)])
        lists = [
            np.fromiter(chain.from_iterable(sequence.tokens for sequence in packed), np.int64, len(positions)),
            positions,
            self._slots(packed),
            last,
        ]
        places = self.sources(packed)
        if max(places, default=-1) >= 0:
            lists.append(np.repeat(np.array(places), new))
        on_device = upload(self.device, *lists) if uses_triton(self.device) else [torch.tensor(one) for one in lists]
        return Layout(
            tokens=on_device[0],
            positions=on_device[1],
            slots=on_device[2],
            last=on_device[3],
            attention=plan,
            order=order,
            sources=on_device[4] if len(on_device) > 4 else None,
            samples=samples,
        )

    def _slots(self, packed: Sequence[SequenceInput]) -> np.ndarray:
        """Where the keys and values of every new token go, [T]."""
        size = self.block_size
        parts = []
        for one in packed:
            start, end = one.start, one.start + len(one.tokens)
            if end - start == 1:
                parts.append([one.blocks[start // size] * size + start % size])
            else:
                blocks = np.array(one.blocks[start // size : (end - 1) // size + 1])
                slots = (blocks[:, None] * size + np.arange(size)).ravel()
                parts.append(slots[start % size :][: end - start].tolist())
        return np.fromiter(chain.from_iterable(parts), np.int64)

    def order(self, batch: Sequence[SequenceInput]) -> list[int]:
        """Which sequence of the batch stands where when it is packed."""
        decodes = [index for index, sequence in enumerate(batch) if len(sequence.tokens) == 1]
        if not uses_triton(self.device):
            decodes.sort(key=lambda index: -batch[index].start)
        return decodes + [index for index, sequence in enumerate(batch) if len(sequence.tokens) > 1]

    def sources(self, packed: Sequence[SequenceInput]) -> list[int]:
        """Where in `sampled` each sequence's token lies, or will when the step runs; -1 where its `tokens` say it."""
        places = []
        sampled_at, rows = self._sampled_at, len(self._sampled_at)
        for sequence in packed:
            previous = sequence.previous
            if previous is None:
                places.append(-1)
            elif len(sequence.tokens) == 1 and 0 <= previous < rows:
                places.append(sampled_at[previous])
            else:
                raise ValueError(
                    f"previous = {previous} for {len(sequence.tokens)} tokens; expected, for one token, a row of the "
                    f"batch launched before, which had {rows}"
                )
        return places

    def plan(
        self, new_tokens: Sequence[int], contexts: Sequence[int], blocks: Sequence[Sequence[int]]
    ) -> AttentionPlan | PagedPlan:
        """How packed sequences attend: `new_tokens` each, behind which it sees `contexts`, kept in `blocks`."""
        size = self.block_size
        if uses_triton(self.device):
            model = self.model
            return plan_paged(
                new_tokens,
                contexts,
                blocks,
                heads=model.heads,
                kv_heads=model.kv_heads,
                block_size=size,
                device=self.device,
            )
        decodes = sum(1 for new in new_tokens if new == 1)
        tiles = plan_decodes(
            contexts[:decodes],
            blocks[:decodes],
            block_size=size,
            tile_tokens=self._tile_tokens,
            device=self.device,
            dtype=self.dtype,
        )
        spans = []
        first = decodes
        for new, context, of_sequence in zip(new_tokens[decodes:], contexts[decodes:], blocks[decodes:], strict=True):
            needed = of_sequence[: -(-context // size)]
            spans.append(plan_prefill(first, new, context - new, needed, device=self.device, dtype=self.dtype))
            first += new
        return AttentionPlan(tiles, spans)

    def sample(self, layout: Layout) -> None:
        """Run a forward pass and leave the next token of each packed sequence in `sampled`."""
        tokens = self.forward(layout)
        self.sampled[: len(tokens)] = tokens

    def forward(self, layout: Layout) -> torch.Tensor:
        """The next token of each packed sequence, [S], on the device."""
        x = self.hidden(layout)
        if len(layout.last) < len(x):
            x = x.index_select(0, layout.last)
        return greedy(product(x, self.weights.lm_head, in_parts=False)[0])

    @torch.inference_mode()
    def logits(self, batch: Sequence[SequenceInput]) -> list[torch.Tensor]:
        """Of every new token the logits of the one after it: [new tokens, vocab] a sequence. The cache is written."""
        layout = self.layout(batch)
        rows = product(self.hidden(layout), self.weights.lm_head, in_parts=False)[0].float()
        parts = rows.split([len(batch[index].tokens) for index in layout.order])
        by_index = dict(zip(layout.order, parts, strict=True))
        return [by_index[index] for index in range(len(batch))]

    def new_caches(self, slots: int) -> list[torch.Tensor]:
        """Keys and values of every layer, each [slots, 2, kv_heads, head_dim].

        Zeros, not empty memory: a padded position is read before it is masked, and NaN would survive the mask.
        """
        shape = (slots, 2, self.model.kv_heads, self.model.head_dim)
        return [torch.zeros(shape, device=self.device, dtype=self.dtype) for _ in range(self.model.layers)]

    def embedded(self, layout: Layout) -> torch.Tensor:
        """The hidden state before the first layer, [T, hidden]."""
        tokens = layout.tokens
        if layout.sources is not None:
            sampled = self.sampled.index_select(0, layout.sources.clamp(min=0))
            tokens = torch.where(layout.sources < 0, tokens, sampled)
        return embedding(tokens, self.weights.embedding)

    def hidden(self, layout: Layout) -> torch.Tensor:
        """The normalised hidden state behind the last layer, [T, hidden]."""
        weights, eps = self.weights, self.model.rms_eps
        rotation = self.rotation(layout)
        residual = self.embedded(layout)
        parts = torch.zeros_like(residual)[None]
        for layer, cache in zip(weights.layers, self.caches, strict=True):
            x = add_rmsnorm(parts, residual, layer.input_norm, eps)
            parts = product(self.attended(x, layer, cache, rotation, layout), layer.o_proj)
            x = add_rmsnorm(parts, residual, layer.post_norm, eps)
            parts = self.mlp(x, layer)
        return add_rmsnorm(parts, residual, weights.final_norm, eps)

    def rotation(self, layout: Layout) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and signed sines of the new tokens' positions, each [T, 1, head_dim]."""
        return self.cos.index_select(0, layout.positions), self.sin.index_select(0, layout.positions)

    def attended(
        self,
        x: torch.Tensor,
        layer: LayerWeights,
        cache: torch.Tensor,
        rotation: tuple[torch.Tensor, torch.Tensor],
        layout: Layout,
    ) -> torch.Tensor:
        """What a layer's heads find, [T, hidden] → [T, features]; the new keys and values go into its cache."""
        # Heads that are normalised (Qwen3) must be whole before it.
        normed = layer.query_norm is not None and layer.key_norm is not None
        parts = product(x, layer.qkv_proj, in_parts=not normed)
        qkv = parts.view(*parts.shape[:2], -1, self.model.head_dim)
        if layer.query_norm is not None and layer.key_norm is not None:
            self.qk_norm(qkv[0], layer.query_norm, layer.key_norm)
        query = rotary_write(qkv, *rotation, cache, layout.slots)
        return self.attention(query, cache, layout)

    def mlp(self, x: torch.Tensor, layer: LayerWeights) -> torch.Tensor:
        """A layer's MLP, [T, hidden] → parts [P, T, hidden] to be summed."""
        x, activated = gate_up_product(x, layer.gate_up_proj)
        return product(x if activated else silu_mul(x), layer.down_proj)

    def qk_norm(self, qkv: torch.Tensor, query_norm: torch.Tensor, key_norm: torch.Tensor) -> None:
        """Normalise each query and key head of [T, heads + 2·kv_heads, head_dim] in place (Qwen3)."""
        qk_norm(qkv, query_norm, key_norm, self.model.heads, self.model.kv_heads, self.model.rms_eps)

    def attention(self, query: torch.Tensor, cache: torch.Tensor, layout: Layout) -> torch.Tensor:
        """Attend, the new keys and values lie in the cache: [T, heads, head_dim] → [T, features]."""
        return paged_attention(query, cache, self.block_size, layout.attention)
