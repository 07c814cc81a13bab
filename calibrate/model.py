"""The shape of a decoder-only transformer: all that its cost depends on, and no weights."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ground.errors import UserError

_BUNDLED = Path(__file__).parent / "models"
_DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_MODEL_TYPES = ("llama", "qwen3", "qwen3_moe")

# A layer's cost is looked up by its number of tokens (dense, moe), of sequences (per_sequence), or by contexts.
KernelClass = Literal["dense", "per_sequence", "attention", "moe"]


class Linear(NamedTuple):
    """One sharded linear layer: its name and the sizes of its input and output, in features."""

    name: str
    inputs: int
    outputs: int


class LayerCalls(NamedTuple):
    """How often one forward pass calls a layer, and the kernel class that measures it."""

    layer: str
    kernel_class: KernelClass
    calls: int


@dataclass(frozen=True)
class RopeScaling:
    """Llama 3's stretching of the rotary wavelengths (Meta's `apply_scaling`; `rope_type: llama3`)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position: int


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a Llama-family decoder. `experts == 0` means a dense MLP.

    A tensor-parallel rank's share of a model is itself such a shape (`shard`), which is what a microbenchmark runs.
    """

    name: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    tied_embeddings: bool = False
    qk_norm: bool = False
    max_context: int = 4096
    dtype_bytes: int = 2
    rope_theta: float = 10000.0
    rms_eps: float = 1e-5
    rope_scaling: RopeScaling | None = None
    experts: int = 0
    experts_per_token: int = 0
    moe_intermediate: int = 0

    def shard(self, tp: int) -> ModelShape:
        """One rank's share under tensor parallelism: heads, MLP width and vocabulary divided, hidden size kept.

        KV heads are replicated where there are fewer of them than ranks, as vLLM does.

        Raises:
            UserError: a size that must be divided is not divisible by `tp`.
        """
        divided = {"attention heads": self.heads, "intermediate size": self.intermediate, "vocabulary": self.vocab}
        if self.experts:
            divided["expert intermediate size"] = self.moe_intermediate
        for what, size in divided.items():
            if tp < 1 or size % tp:
                raise UserError(f"{self.name}: {size} {what} cannot be divided over tp = {tp}")
        if self.kv_heads % tp and tp % self.kv_heads:
            raise UserError(f"{self.name}: {self.kv_heads} KV heads cannot be divided over tp = {tp}")
        return replace(
            self,
            heads=self.heads // tp,
            kv_heads=max(1, self.kv_heads // tp),
            intermediate=self.intermediate // tp,
            vocab=self.vocab // tp,
            moe_intermediate=self.moe_intermediate // tp,
        )

    def linears(self, tp: int = 1) -> list[Linear]:
        """The linear layers of one rank, each once, in the order in which a layer meets them.

        Of a mixture of experts the router is among them; its experts are not (`expert_bytes`).
        """
        rank = self.shard(tp)
        head_features = rank.heads * rank.head_dim
        linears = [
            Linear("qkv_proj", rank.hidden, head_features + 2 * rank.kv_heads * rank.head_dim),
            Linear("o_proj", head_features, rank.hidden),
        ]
        if rank.experts:
            linears.append(Linear("router", rank.hidden, rank.experts))
        else:
            linears.append(Linear("gate_up_proj", rank.hidden, 2 * rank.intermediate))
            linears.append(Linear("down_proj", rank.intermediate, rank.hidden))
        return [*linears, Linear("lm_head", rank.hidden, rank.vocab)]

    def calls(self) -> list[LayerCalls]:
        """What one forward pass runs, in vLLM's layer names and order."""
        n = self.layers
        mlp = (
            [LayerCalls("moe", "moe", n)]
            if self.experts
            else [
                LayerCalls("gate_up_proj", "dense", n),
                LayerCalls("act_fn", "dense", n),
                LayerCalls("down_proj", "dense", n),
            ]
        )
        return [
            LayerCalls("embedding", "dense", 1),
            LayerCalls("layernorm", "dense", 2 * n),
            LayerCalls("qkv_proj", "dense", n),
            *([LayerCalls("qk_norm", "dense", n)] if self.qk_norm else []),
            LayerCalls("rotary_emb", "dense", n),
            LayerCalls("attention", "attention", n),
            LayerCalls("o_proj", "dense", n),
            *mlp,
            LayerCalls("final_layernorm", "dense", 1),
            LayerCalls("lm_head", "per_sequence", 1),
            LayerCalls("sampler", "per_sequence", 1),
        ]

    def weight_bytes(self, tp: int = 1) -> int:
        """Bytes of the weights that one rank holds; norms are replicated."""
        rank = self.shard(tp)
        in_layer = sum(linear.inputs * linear.outputs for linear in self.linears(tp) if linear.name != "lm_head")
        in_layer += rank.experts * 3 * rank.hidden * rank.moe_intermediate
        in_layer += 2 * rank.hidden + (2 * rank.head_dim if rank.qk_norm else 0)
        tables = (1 if rank.tied_embeddings else 2) * rank.vocab * rank.hidden
        return (rank.layers * in_layer + tables + rank.hidden) * rank.dtype_bytes

    def expert_bytes(self) -> int:
        """Bytes of the weights of all experts, in all layers; 0 of a dense model."""
        return self.layers * self.experts * 3 * self.hidden * self.moe_intermediate * self.dtype_bytes

    def kv_bytes_per_token(self, tp: int = 1) -> int:
        """Bytes of keys and values that one token keeps on one rank, all layers."""
        rank = self.shard(tp)
        return 2 * rank.layers * rank.kv_heads * rank.head_dim * rank.dtype_bytes

    def differences(self, other: ModelShape) -> list[str]:
        """Fields that change the cost of a kernel and are not equal: "hidden 4096 and 8192"."""
        free = {"name", "max_context", "rope_theta", "rms_eps", "rope_scaling"}
        return [
            f"{field.name} {getattr(self, field.name)} and {getattr(other, field.name)}"
            for field in fields(self)
            if field.name not in free and getattr(self, field.name) != getattr(other, field.name)
        ]


def bundled_models() -> list[str]:
    """Names that `load_model` knows without a file."""
    return sorted(path.stem for path in _BUNDLED.glob("*.json"))


def load_model(name_or_path: str | Path) -> ModelShape:
    """Read a Hugging Face `config.json` (or the folder that holds one), or a bundled model by name.

    Raises:
        UserError: no such model or file, not JSON, a missing or impossible key, an architecture not covered.
    """
    bundled = _BUNDLED / f"{name_or_path}.json"
    path = bundled if bundled.is_file() and bundled.parent == _BUNDLED else Path(name_or_path)
    if path.is_dir():
        path = path / "config.json"
    if not path.is_file():
        raise UserError(
            f"{name_or_path}: no such model; expected a Hugging Face config.json "
            f"or one of {', '.join(bundled_models())}"
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not a JSON file ({error}); expected a Hugging Face config.json") from error
    if not isinstance(config, dict):
        raise UserError(f"{path}: holds a {type(config).__name__}; expected a Hugging Face config.json, an object")
    name = path.parent.name if path.stem == "config" else path.stem
    return _shape(config, name, path)


def _shape(config: dict[str, Any], name: str, path: Path) -> ModelShape:
    def size(key: str, default: int | None = None) -> int:
        value = config.get(key)
        value = default if value is None else value
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            found = "is missing" if key not in config else f"is {config[key]!r}"
            raise UserError(f"{path}: key {key} {found}; expected a positive integer")
        return value

    def number(key: str, default: float) -> float:
        value = config.get(key, default)
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not value > 0:
            raise UserError(f"{path}: key {key} is {value!r}; expected a positive number")
        return float(value)

    model_type = config.get("model_type")
    if model_type not in _MODEL_TYPES:
        raise UserError(f"{path}: key model_type is {model_type!r}; expected one of {', '.join(_MODEL_TYPES)}")
    dtype = config.get("torch_dtype", config.get("dtype", "bfloat16"))
    if dtype not in _DTYPE_BYTES:
        raise UserError(f"{path}: key torch_dtype is {dtype!r}; expected one of {', '.join(_DTYPE_BYTES)}")
    hidden, heads = size("hidden_size"), size("num_attention_heads")
    kv_heads = size("num_key_value_heads", heads)
    if heads % kv_heads:
        raise UserError(f"{path}: {heads} attention heads are not a multiple of {kv_heads} KV heads")
    is_moe = model_type == "qwen3_moe"
    return ModelShape(
        name=name,
        hidden=hidden,
        layers=size("num_hidden_layers"),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=size("head_dim", hidden // heads),
        intermediate=size("intermediate_size"),
        vocab=size("vocab_size"),
        tied_embeddings=bool(config.get("tie_word_embeddings", False)),
        qk_norm=model_type in ("qwen3", "qwen3_moe"),
        max_context=size("max_position_embeddings"),
        dtype_bytes=_DTYPE_BYTES[dtype],
        rope_theta=number("rope_theta", 10000.0),
        rms_eps=number("rms_norm_eps", 1e-6),
        rope_scaling=_rope_scaling(config.get("rope_scaling"), path),
        experts=size("num_experts") if is_moe else 0,
        experts_per_token=size("num_experts_per_tok") if is_moe else 0,
        moe_intermediate=size("moe_intermediate_size") if is_moe else 0,
    )


def _rope_scaling(scaling: Any, path: Path) -> RopeScaling | None:
    if scaling is None:
        return None
    kind = scaling.get("rope_type", scaling.get("type")) if isinstance(scaling, dict) else scaling
    if kind == "default":
        return None
    if kind != "llama3":
        raise UserError(f"{path}: key rope_scaling has the type {kind!r}; expected llama3, default or none")
    for key in ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"):
        if not isinstance(scaling.get(key), (int, float)):
            raise UserError(f"{path}: key rope_scaling.{key} is {scaling.get(key)!r}; expected a number")
    return RopeScaling(
        factor=float(scaling["factor"]),
        low_freq_factor=float(scaling["low_freq_factor"]),
        high_freq_factor=float(scaling["high_freq_factor"]),
        original_max_position=int(scaling["original_max_position_embeddings"]),
    )
