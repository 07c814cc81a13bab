"""A Llama of random weights as a GGUF file, the container of llama.cpp.

Written from the published format (ggml's `docs/gguf.md`, version 3): magic, version, counts, metadata, the tensors'
names, shapes and offsets, then their data, each aligned to 32 bytes. All numbers are little-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from calibrate.model import ModelShape
from ground.errors import UserError

_VERSION, _ALIGNMENT = 3, 32
_UINT32, _INT32, _FLOAT32, _STRING, _ARRAY = 4, 5, 6, 8, 9  # kinds of metadata
_F32, _F16 = 0, 1  # kinds of tensor; a file of mostly float16 is of kind 1 too
_NORMAL, _CONTROL = 1, 3  # kinds of token


def write_gguf(path: Path, model: ModelShape, seed: int = 0) -> None:
    """Write `model` with float16 matrices, normal of variance 1/inputs, and float32 norms of 1.

    The vocabulary is made up: readers build a tokenizer from it before they read a weight, but nothing uses it.

    Raises:
        UserError: not a plain Llama, or the file cannot be written.
    """
    if model.experts or model.qk_norm or model.rope_scaling or model.heads * model.head_dim != model.hidden:
        raise UserError(
            f"{model.name}: expected a dense Llama without QK norm or RoPE scaling, whose heads fill its hidden size"
        )
    shapes = dict(_shapes(model))
    metadata = _metadata(model)
    header = [struct.pack("<4sIQQ", b"GGUF", _VERSION, len(shapes), len(metadata))]
    header += [_text(key) + _value(value) for key, value in metadata.items()]
    offset = 0
    for name, shape in shapes.items():
        # GGUF counts dimensions from the one that lies contiguous.
        kind, size = (_F32, 4) if len(shape) == 1 else (_F16, 2)
        header.append(_text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *reversed(shape), kind, offset))
        offset += _aligned(size * int(np.prod(shape)))
    try:
        with path.open("wb") as file:
            file.write(_padded(b"".join(header)))
            for stream, shape in enumerate(shapes.values()):
                file.write(_padded(_weights(shape, seed, stream)))
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from error


def _metadata(model: ModelShape) -> dict[str, Any]:
    """Key → value; a plain `int` is written as an unsigned one of 32 bits."""
    tokens = [*(f"t{i}" for i in range(model.vocab - 2)), "<s>", "</s>"]
    return {
        "general.architecture": "llama",
        "general.name": model.name,
        "general.file_type": _F16,
        "llama.block_count": model.layers,
        "llama.context_length": model.max_context,
        "llama.embedding_length": model.hidden,
        "llama.feed_forward_length": model.intermediate,
        "llama.attention.head_count": model.heads,
        "llama.attention.head_count_kv": model.kv_heads,
        "llama.attention.layer_norm_rms_epsilon": float(model.rms_eps),
        "llama.rope.dimension_count": model.head_dim,
        "llama.rope.freq_base": float(model.rope_theta),
        "llama.vocab_size": model.vocab,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "llama-bpe",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [*([_NORMAL] * (model.vocab - 2)), _CONTROL, _CONTROL],
        "tokenizer.ggml.merges": ["t 0"],
        "tokenizer.ggml.bos_token_id": model.vocab - 2,
        "tokenizer.ggml.eos_token_id": model.vocab - 1,
    }


def _shapes(model: ModelShape) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name → shape of every tensor; a matrix is [outputs, inputs]."""
    hidden, width = model.hidden, model.intermediate
    queries, keys = model.heads * model.head_dim, model.kv_heads * model.head_dim
    yield "token_embd.weight", (model.vocab, hidden)
    for layer in range(model.layers):
        block = f"blk.{layer}"
        yield f"{block}.attn_norm.weight", (hidden,)
        yield f"{block}.attn_q.weight", (queries, hidden)
        yield f"{block}.attn_k.weight", (keys, hidden)
        yield f"{block}.attn_v.weight", (keys, hidden)
        yield f"{block}.attn_output.weight", (hidden, queries)
        yield f"{block}.ffn_norm.weight", (hidden,)
        yield f"{block}.ffn_gate.weight", (width, hidden)
        yield f"{block}.ffn_up.weight", (width, hidden)
        yield f"{block}.ffn_down.weight", (hidden, width)
    yield "output_norm.weight", (hidden,)
    if not model.tied_embeddings:
        yield "output.weight", (model.vocab, hidden)


def _weights(shape: tuple[int, ...], seed: int, stream: int) -> bytes:
    if len(shape) == 1:
        return np.ones(shape, "<f4").tobytes()
    normal = np.random.default_rng([seed, stream]).standard_normal(shape, np.float32)
    return (normal / shape[1] ** 0.5).astype("<f2").tobytes()


def _value(value: Any) -> bytes:
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _text(value)
    if isinstance(value, float):
        return struct.pack("<If", _FLOAT32, value)
    if isinstance(value, int):
        return struct.pack("<II", _UINT32, value)
    if isinstance(value[0], str):
        return struct.pack("<IIQ", _ARRAY, _STRING, len(value)) + b"".join(map(_text, value))
    return struct.pack(f"<IIQ{len(value)}i", _ARRAY, _INT32, len(value), *value)


def _text(text: str) -> bytes:
    encoded = text.encode()
    return struct.pack("<Q", len(encoded)) + encoded


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _padded(data: bytes) -> bytes:
    return data.ljust(_aligned(len(data)), b"\0")
