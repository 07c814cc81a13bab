"""The decoder's weights: drawn from a seed, or read from safetensors with Hugging Face names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from calibrate.model import ModelShape
from ground.errors import UserError


@dataclass(frozen=True)
class LayerWeights:
    """One layer; linear weights are [outputs, inputs]. The query and key norms are None without QK norm."""

    input_norm: torch.Tensor
    qkv_proj: torch.Tensor
    query_norm: torch.Tensor | None
    key_norm: torch.Tensor | None
    o_proj: torch.Tensor
    post_norm: torch.Tensor
    gate_up_proj: torch.Tensor
    down_proj: torch.Tensor


@dataclass(frozen=True)
class DecoderWeights:
    embedding: torch.Tensor
    layers: list[LayerWeights]
    final_norm: torch.Tensor
    lm_head: torch.Tensor


def random_weights(model: ModelShape, device: torch.device, dtype: torch.dtype, seed: int) -> DecoderWeights:
    """Normal weights of variance 1/inputs, so that activations keep their scale through the layers; norms are 1."""
    generator = torch.Generator(device=device).manual_seed(seed)

    def draw(name: str, shape: tuple[int, ...]) -> torch.Tensor:
        if len(shape) == 1:
            return torch.ones(shape, device=device, dtype=dtype)
        normal = torch.randn(shape, generator=generator, device=device, dtype=torch.float32)
        return (normal / shape[1] ** 0.5).to(dtype)

    return _assemble(model, draw)


def load_weights(path: Path, model: ModelShape, device: torch.device, dtype: torch.dtype) -> DecoderWeights:
    """Read a safetensors file, or every one in a folder.

    Raises:
        UserError: no such file, not safetensors, a tensor is missing or has another shape than the model's.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise UserError(f"{path}: no safetensors file; expected one, or a folder of them")
    tensors: dict[str, torch.Tensor] = {}
    for file in files:
        try:
            tensors |= load_file(file)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{file}: not a readable safetensors file ({error})") from error

    def read(name: str, shape: tuple[int, ...]) -> torch.Tensor:
        if name not in tensors:
            raise UserError(f"{path}: tensor {name} is missing; expected the weights of {model.name}")
        if tuple(tensors[name].shape) != shape:
            raise UserError(f"{path}: tensor {name} is {list(tensors[name].shape)}; expected {list(shape)}")
        return tensors[name].to(device, dtype)

    return _assemble(model, read)


def _assemble(model: ModelShape, tensor: Callable[[str, tuple[int, ...]], torch.Tensor]) -> DecoderWeights:
    """Ask for every tensor by its Hugging Face name and shape, and fuse what the kernels take fused."""
    hidden, width = model.hidden, model.intermediate
    queries, keys = model.heads * model.head_dim, model.kv_heads * model.head_dim
    layers = []
    for index in range(model.layers):
        prefix = f"model.layers.{index}"
        attention, mlp = f"{prefix}.self_attn", f"{prefix}.mlp"
        qkv = [
            tensor(f"{attention}.{name}_proj.weight", (size, hidden))
            for name, size in (("q", queries), ("k", keys), ("v", keys))
        ]
        gate_up = [tensor(f"{mlp}.{name}_proj.weight", (width, hidden)) for name in ("gate", "up")]
        layers.append(
            LayerWeights(
                input_norm=tensor(f"{prefix}.input_layernorm.weight", (hidden,)),
                qkv_proj=torch.cat(qkv),
                query_norm=tensor(f"{attention}.q_norm.weight", (model.head_dim,)) if model.qk_norm else None,
                key_norm=tensor(f"{attention}.k_norm.weight", (model.head_dim,)) if model.qk_norm else None,
                o_proj=tensor(f"{attention}.o_proj.weight", (hidden, queries)),
                post_norm=tensor(f"{prefix}.post_attention_layernorm.weight", (hidden,)),
                gate_up_proj=torch.cat(gate_up),
                down_proj=tensor(f"{mlp}.down_proj.weight", (hidden, width)),
            )
        )
    table = tensor("model.embed_tokens.weight", (model.vocab, hidden))
    return DecoderWeights(
        embedding=table,
        layers=layers,
        final_norm=tensor("model.norm.weight", (hidden,)),
        lm_head=table if model.tied_embeddings else tensor("lm_head.weight", (model.vocab, hidden)),
    )
