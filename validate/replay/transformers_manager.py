"""transformers' continuous batching over a model in memory, with the limits of one of our engines.

The weights are those of our own decoder, drawn from the same seed or read from the same file: so both engines generate
the same tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from calibrate.model import ModelShape
from calibrate.weights import DecoderWeights, load_weights, random_weights
from ground.errors import UserError
from sim.engine.batching.continuous import ContinuousSettings
from sim.engine.config import EngineConfig

# Settings that it does not have, or is run without, and the value that says what it does instead.
_FIXED: dict[str, Any] = {
    "enable_chunked_prefill": True,
    "long_prefill_token_threshold": None,
    "scheduling_policy": "fcfs",
    "batching": ContinuousSettings(),
    "scheduler_reserve_full_isl": False,
    "reserved_blocks": 0,
    "swap_blocks": 0,
    "pruning": None,
    "data_parallel": 1,
    "kv_cache": True,
    "kv_reservation": "paged",
    "session_retention": None,
    "speculative": None,
    "kv_offload": None,
    "prefill_policy": "mixed",
    "capacity_policy": "max_utilization",
    "token_budget": None,
}


@dataclass(frozen=True)
class Built:
    """`manager` is a `ContinuousBatchingManager` that has not started; `facts` say what it resolved to."""

    manager: Any
    facts: dict[str, Any]


def check_limits(config: EngineConfig, device: str) -> None:
    """Raises UserError: a setting that transformers cannot follow."""
    for name, expected in _FIXED.items():
        found = getattr(config, name)
        if found != expected:
            raise UserError(f"engine.{name} is {found}; transformers runs with {expected} and no other")
    if config.async_scheduling and device == "cpu":
        raise UserError("engine.async_scheduling is true; transformers schedules ahead on a GPU only, expected false")


def build(
    model: ModelShape, config: EngineConfig, *, device: str, dtype: torch.dtype, seed: int, weights: Path | None
) -> Built:
    """A model of that shape behind a manager with those limits.

    `weights` is a safetensors file or folder with Hugging Face names; without it they are drawn from `seed`.

    Raises:
        UserError: a mixture of experts, weights that are not the model's, a setting that transformers does not have, or
            a KV cache larger than the memory.
    """
    check_limits(config, device)
    causal_model = load(model, device=device, dtype=dtype, seed=seed, weights=weights)
    from transformers import GenerationConfig
    from transformers.generation.configuration_utils import ContinuousBatchingConfig

    batching = ContinuousBatchingConfig(
        page_size=config.block_size,
        num_blocks=config.kv_blocks,
        max_batch_tokens=config.max_num_batched_tokens,
        max_requests_per_batch=config.max_num_seqs,
        allow_block_sharing=config.enable_prefix_caching,
        use_async_batching=config.async_scheduling,
        scheduler_type="fifo",
        auto_switch_to_flash=False,  # it would look for kernels on the network
        seed=seed,
    )
    try:
        manager = causal_model.init_continuous_batching(
            generation_config=GenerationConfig(do_sample=False, eos_token_id=-1), continuous_batching_config=batching
        )
        manager.warmup()  # makes the cache, and captures the graphs where there are any
    except (MemoryError, ValueError) as error:
        blocks = f"{config.kv_blocks} blocks of {config.block_size} tokens"
        raise UserError(f"transformers cannot make a cache of {blocks}: {error}") from error
    resolved = manager.continuous_batching_config
    return Built(
        manager,
        {
            "attention": causal_model.config._attn_implementation,
            "cuda_graphs": "varlen {}, decode {}".format(*resolved.use_cuda_graph),
            "async_batching": resolved.use_async_batching,
            "page_size": resolved.page_size,
            "kv_blocks": resolved.num_blocks,
            "max_batch_tokens": resolved.max_batch_tokens,
            "max_requests_per_batch": resolved.max_requests_per_batch,
        },
    )


def load(model: ModelShape, *, device: str, dtype: torch.dtype, seed: int, weights: Path | None) -> Any:
    """A Llama, or with QK norm a Qwen3, of that shape; see `build`."""
    from transformers import AutoModelForCausalLM

    if model.experts:
        raise UserError(f"{model.name}: a mixture of experts; expected a dense model")
    place = torch.device(device)
    tensors = (
        load_weights(weights, model, place, dtype) if weights is not None else random_weights(model, place, dtype, seed)
    )
    # Flash attention takes half precision only, and its package may be missing.
    flash = device == "cuda" and dtype != torch.float32 and find_spec("flash_attn") is not None
    with place:
        causal_model = AutoModelForCausalLM.from_config(
            _config(model), dtype=dtype, attn_implementation="flash_attention_2" if flash else "sdpa"
        )
    causal_model.load_state_dict(dict(_named(tensors, model)), assign=True)
    causal_model.tie_weights()
    return causal_model.eval()


def _config(model: ModelShape) -> Any:
    from transformers import LlamaConfig, Qwen3Config

    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": model.rope_theta}
    if scaling := model.rope_scaling:
        rope |= {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_max_position,
        }
    return (Qwen3Config if model.qk_norm else LlamaConfig)(
        vocab_size=model.vocab,
        hidden_size=model.hidden,
        intermediate_size=model.intermediate,
        num_hidden_layers=model.layers,
        num_attention_heads=model.heads,
        num_key_value_heads=model.kv_heads,
        head_dim=model.head_dim,
        max_position_embeddings=model.max_context,
        rms_norm_eps=model.rms_eps,
        rope_parameters=rope,
        tie_word_embeddings=model.tied_embeddings,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )


def _named(weights: DecoderWeights, model: ModelShape) -> Iterator[tuple[str, torch.Tensor]]:
    """Hugging Face name → tensor; those that our decoder keeps fused are rows of it, and not copied."""
    queries, keys = model.heads * model.head_dim, model.kv_heads * model.head_dim
    yield "model.embed_tokens.weight", weights.embedding
    for index, layer in enumerate(weights.layers):
        prefix = f"model.layers.{index}"
        yield f"{prefix}.input_layernorm.weight", layer.input_norm
        for name, rows in zip("qkv", layer.qkv_proj.split([queries, keys, keys]), strict=True):
            yield f"{prefix}.self_attn.{name}_proj.weight", rows
        if layer.query_norm is not None and layer.key_norm is not None:
            yield f"{prefix}.self_attn.q_norm.weight", layer.query_norm
            yield f"{prefix}.self_attn.k_norm.weight", layer.key_norm
        yield f"{prefix}.self_attn.o_proj.weight", layer.o_proj
        yield f"{prefix}.post_attention_layernorm.weight", layer.post_norm
        for name, rows in zip(("gate", "up"), layer.gate_up_proj.split(model.intermediate), strict=True):
            yield f"{prefix}.mlp.{name}_proj.weight", rows
        yield f"{prefix}.mlp.down_proj.weight", layer.down_proj
    yield "model.norm.weight", weights.final_norm
    yield "lm_head.weight", weights.lm_head
