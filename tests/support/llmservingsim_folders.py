"""Tiny folders in the two forms of LLMServingSim's profiler, of a small model whose times follow a simple law."""

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import yaml

CONFIG = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 256,
    "max_position_embeddings": 4096,
    "torch_dtype": "bfloat16",
}
EXPERTS_CONFIG = CONFIG | {
    "model_type": "qwen3_moe",
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 64,
}
META: dict[str, Any] = {
    "profiler_version": "1.0.0",
    "vllm_version": "0.19.0",
    "cuda_version": "12.8",
    "gpu": "NVIDIA GeForce RTX 4090",
    "hardware": "RTX4090",
    "profiled_at": "2026-08-17T19:43:32+00:00",
    "model": "made/Small",
    "engine_effective": {"block_size": 32},
    "attention_grid": {"max_kv": 1024},
    "skew_profile": {"enabled": False},
}
DENSE = ("embedding", "layernorm", "qkv_proj", "rotary_emb", "o_proj", "gate_up_proj", "act_fn", "down_proj")
TOKENS, CONTEXTS = (1, 16, 128, 2048), (0, 16, 256, 1024)

Rows = Sequence[Sequence[Any]]


def write_csv(path: Path, header: str, rows: Rows) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header.split(","))
        writer.writerows(rows)


def dense_us(layer: str, tokens: int, tp: int) -> float:
    return 1.0 + len(layer) / 10 + tokens / 100 / tp


def attention_us(chunk: int, prefix: int, n: int, context: int) -> float:
    return 4.0 + chunk / 50 + chunk * prefix / 1e5 + n * context / 1e3 + n / 10


def write_tp(folder: Path, tp: int, *, layers: Sequence[str] = DENSE) -> None:
    """The tables of one degree of tensor parallelism."""
    dense = [(layer, n, dense_us(layer, n, tp)) for layer in (*layers, "final_layernorm") for n in TOKENS]
    write_csv(folder / "dense.csv", "layer,tokens,time_us", dense)
    per_sequence = [(layer, n, 10.0 + n) for layer in ("lm_head", "sampler") for n in (1, 8, 64)]
    write_csv(folder / "per_sequence.csv", "layer,sequences,time_us", per_sequence)
    points = [(chunk, prefix, 0, 0) for chunk in (16, 256, 2048) for prefix in (0, 512)]
    points += [(0, 0, n, context) for n in (1, 8, 64) for context in CONTEXTS]
    points += [(c, p, n, k) for c in (16, 256, 2048) for p in (0, 512) for n in (1, 8, 64) for k in CONTEXTS]
    rows = [(*point, attention_us(*point)) for point in points]
    write_csv(folder / "attention.csv", "prefill_chunk,kv_prefill,n_decode,kv_decode,time_us", rows)


def write_variant(root: Path, *, degrees: Sequence[int] = (1,), **changed: Any) -> Path:
    """`root/profiles/RTX4090/made/Small/bf16` with a meta.yaml and a folder a degree; the model lies beside it."""
    variant = root / "profiles" / "RTX4090" / "made" / "Small" / "bf16"
    for tp in degrees:
        write_tp(variant / f"tp{tp}", tp)
    (variant / "meta.yaml").write_text(yaml.safe_dump(META | changed), encoding="utf-8")
    write_model(root)
    return variant


def write_model(root: Path, config: dict[str, Any] = CONFIG, name: str = "made/Small") -> Path:
    path = root / "models" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(config), encoding="utf-8")
    return path


# The older form.

OLDER = (
    "embedding", "input_layernorm", "q_proj", "k_proj", "v_proj", "rope", "o_proj", "post_layernorm", "gate_proj",
    "up_proj", "act_fn", "down_proj", "final_layernorm", "lm_head",
)  # fmt: skip


def older_ns(layer: str, tokens: int) -> int:
    return 1000 * (1 + OLDER.index(layer)) + 10 * tokens


def write_older(folder: Path, *, degrees: Sequence[int] = (4,), layers: Sequence[str] = OLDER) -> Path:
    """`layers.csv` and `attention.csv`, whose kv_cache_size counts all keys of a call."""
    rows = [(layer, n, 0, tp, older_ns(layer, n) // tp) for tp in degrees for layer in layers for n in (1, 64, 512)]
    write_csv(folder / "layers.csv", "layer_name,input,kv_cache,tp_size,latency(ns)", rows)
    header = (
        "time_stats.attn_prefill.median,time_stats.attn_decode.median,num_tensor_parallel_workers,batch_size,"
        "prefill_chunk_size,kv_cache_size,is_prefill,attention_backend"
    )
    attention: list[tuple[Any, ...]] = []
    for tp in degrees:
        attention += [(0.1, None, tp, 1, 64, keys, True, "FLASH_ATTENTION") for keys in (64, 576)]
        attention += [(0.2, None, tp, 1, 512, keys, True, "FLASH_ATTENTION") for keys in (512, 1024)]
        attention += [
            (None, 0.01 * n, tp, n, 0, n * context, False, "FLASH_ATTENTION") for n in (1, 8) for context in (64, 512)
        ]
    write_csv(folder / "attention.csv", header, attention)
    return folder


def layer(table: pl.DataFrame, name: str) -> dict[int, float]:
    """Seconds of a layer, by tokens or sequences."""
    rows = table.filter(pl.col("layer") == name)
    return dict(zip(rows[:, 1].to_list(), rows["seconds"].to_list(), strict=True))


def spoil(path: Path, change: Callable[[pl.DataFrame], pl.DataFrame]) -> None:
    change(pl.read_csv(path)).write_csv(path)
