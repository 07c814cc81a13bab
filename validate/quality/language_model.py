"""The small byte-level model as something to train: the decoder's own arithmetic, with gradients."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch.nn import functional

from calibrate.kernels.rotary import rotary_tables
from calibrate.model import ModelShape

# A token is a byte. Eight layers, so that there are some to leave out; small enough to learn in minutes on two cores.
SHAPE = ModelShape(
    name="python-text",
    hidden=96,
    layers=8,
    heads=3,
    kv_heads=1,
    head_dim=32,
    intermediate=256,
    vocab=256,
    max_context=4096,
    dtype_bytes=4,
)


class LanguageModel:
    """Parameters by their Hugging Face names, float32, and the passes that training needs.

    Its logits are those of `calibrate.decoder.Decoder` with the same weights.
    """

    def __init__(self, shape: ModelShape, parameters: Mapping[str, torch.Tensor], longest: int) -> None:
        """`longest`: tokens of the longest sequence that it will see."""
        self.shape = shape
        self.parameters = dict(parameters)
        cos, sin = rotary_tables(shape, torch.device("cpu"), torch.float32, longest)
        self._cos, self._sin = cos[:, 0], sin[:, 0]

    @classmethod
    def drawn(cls, shape: ModelShape, seed: int, longest: int) -> LanguageModel:
        """Weights of variance 1/inputs; what adds to the residual starts smaller, the more layers add to it.

        (Radford et al., 2019, section 2.3, scale by 1/√layers likewise.)
        """
        generator = torch.Generator().manual_seed(seed)
        parameters = {}
        for name, size in _sizes(shape):
            if len(size) == 1:
                value = torch.ones(size)
            else:
                scale = size[1] ** -0.5 if "embed" not in name else 0.02
                if name.endswith(("o_proj.weight", "down_proj.weight")):
                    scale /= (2 * shape.layers) ** 0.5
                value = torch.randn(size, generator=generator) * scale
            parameters[name] = value.requires_grad_()
        return cls(shape, parameters, longest)

    def hidden(self, tokens: torch.Tensor) -> Iterator[torch.Tensor]:
        """The residual behind each layer in turn, [B, T, hidden], of token ids [B, T]."""
        shape, length = self.shape, tokens.shape[1]
        cos, sin = self._cos[:length], self._sin[:length]
        x = functional.embedding(tokens, self.parameters["model.embed_tokens.weight"])
        for layer in range(shape.layers):
            x = x + self._attention(layer, x, cos, sin)
            x = x + self._mlp(layer, x)
            yield x

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """The next token's logits, [B, T, vocab]."""
        return functional.linear(self._norm("model.norm", hidden), self.parameters["lm_head.weight"])

    def save(self, folder: Path) -> None:
        """Write `model.safetensors` and `config.json` into an existing folder."""
        from safetensors.torch import save_file

        save_file({name: value.detach().contiguous() for name, value in self.parameters.items()}, _file(folder))
        shape = self.shape
        config = {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": shape.hidden,
            "intermediate_size": shape.intermediate,
            "num_hidden_layers": shape.layers,
            "num_attention_heads": shape.heads,
            "num_key_value_heads": shape.kv_heads,
            "head_dim": shape.head_dim,
            "vocab_size": shape.vocab,
            "max_position_embeddings": shape.max_context,
            "rms_norm_eps": shape.rms_eps,
            "rope_theta": shape.rope_theta,
            "tie_word_embeddings": False,
            "hidden_act": "silu",
            "torch_dtype": "float32",
        }
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

    def _attention(self, layer: int, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        prefix, shape = f"model.layers.{layer}", self.shape
        batch, length, _ = x.shape
        x = self._norm(f"{prefix}.input_layernorm", x)

        def heads(name: str) -> torch.Tensor:
            projected = functional.linear(x, self.parameters[f"{prefix}.self_attn.{name}_proj.weight"])
            return projected.view(batch, length, -1, shape.head_dim).transpose(1, 2)

        query, key, value = _rotated(heads("q"), cos, sin), _rotated(heads("k"), cos, sin), heads("v")
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
        flat = mixed.transpose(1, 2).reshape(batch, length, -1)
        return functional.linear(flat, self.parameters[f"{prefix}.self_attn.o_proj.weight"])

    def _mlp(self, layer: int, x: torch.Tensor) -> torch.Tensor:
        prefix = f"model.layers.{layer}"
        x = self._norm(f"{prefix}.post_attention_layernorm", x)
        gate, up, down = (self.parameters[f"{prefix}.mlp.{name}_proj.weight"] for name in ("gate", "up", "down"))
        return functional.linear(functional.silu(functional.linear(x, gate)) * functional.linear(x, up), down)

    def _norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return functional.rms_norm(x, (self.shape.hidden,), self.parameters[f"{name}.weight"], self.shape.rms_eps)


def _rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """[B, heads, T, head_dim] turned by tables [T, head_dim]; as `calibrate.kernels.rotary`, but not in place."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((second, first), dim=-1) * sin


def _file(folder: Path) -> Path:
    return folder / "model.safetensors"


def _sizes(shape: ModelShape) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Every tensor's Hugging Face name and size."""
    hidden, width = shape.hidden, shape.intermediate
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    yield "model.embed_tokens.weight", (shape.vocab, hidden)
    for layer in range(shape.layers):
        prefix = f"model.layers.{layer}"
        yield f"{prefix}.input_layernorm.weight", (hidden,)
        for name, size in (("q", queries), ("k", keys), ("v", keys)):
            yield f"{prefix}.self_attn.{name}_proj.weight", (size, hidden)
        yield f"{prefix}.self_attn.o_proj.weight", (hidden, queries)
        yield f"{prefix}.post_attention_layernorm.weight", (hidden,)
        yield f"{prefix}.mlp.gate_proj.weight", (width, hidden)
        yield f"{prefix}.mlp.up_proj.weight", (width, hidden)
        yield f"{prefix}.mlp.down_proj.weight", (hidden, width)
    yield "model.norm.weight", (hidden,)
    yield "lm_head.weight", (shape.vocab, hidden)
