"""What one rank of each pipeline stage holds of a model, and of every token."""

from __future__ import annotations

from dataclasses import dataclass, replace

from calibrate.model import ModelShape
from calibrate.parallelism import stage_layers


@dataclass(frozen=True)
class StageMemory:
    stage: int  # from 0
    weights: int  # bytes
    kv_bytes_per_token: int
    samples: bool  # whether it is the last


def stage_memories(model: ModelShape, tp: int, data: int, stages: int) -> list[StageMemory]:
    """Of one rank a stage: its layers; the first also holds the embedding and the last the output's weights, tied or
    not. `data` engines share the experts."""
    if stages == 1:
        weights = model.weight_bytes(tp) - _experts_elsewhere(model, tp, data)
        return [StageMemory(0, weights, model.kv_bytes_per_token(tp), True)]
    rank = model.shard(tp)
    table = rank.vocab * rank.hidden * rank.dtype_bytes
    found = []
    for stage, layers in enumerate(stage_layers(model.layers, stages)):
        part = replace(model, layers=layers)
        tables = (1 if model.tied_embeddings else 2) * table
        held = part.weight_bytes(tp) - tables + table * ((stage == 0) + (stage == stages - 1))
        weights = held - _experts_elsewhere(part, tp, data)
        found.append(StageMemory(stage, weights, part.kv_bytes_per_token(tp), stage == stages - 1))
    return found


def _experts_elsewhere(model: ModelShape, tp: int, data: int) -> int:
    """Bytes of the experts that other engines hold."""
    return round(model.expert_bytes() / tp * (1 - 1 / data))
