"""How an engine is spread over GPUs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ExpertExchange = Literal["allgather_reducescatter", "all_to_all"]


@dataclass(frozen=True)
class Parallelism:
    """Ranks of one engine: `tensor` shard every layer; `data` are engines that share a mixture of experts; `pipeline`
    stages hold some of the layers each.

    With `expert` the tensor × data ranks each hold whole experts; without it every expert is sharded over them.
    """

    tensor: int = 1
    data: int = 1
    expert: bool = False
    custom_all_reduce: bool = True  # vLLM's own kernel; without it NCCL's
    pipeline: int = 1
    expert_exchange: ExpertExchange = "allgather_reducescatter"  # how tokens reach the experts of other engines

    @property
    def gpus(self) -> int:
        return self.tensor * self.pipeline * self.data


def stage_layers(layers: int, stages: int) -> list[int]:
    """Layers of each pipeline stage. What does not divide goes to the stages before the last, last ones first: the last
    also has the sampler (vLLM `distributed/utils.py`, `get_pp_indices`)."""
    each, left = divmod(layers, stages)
    return [each + (stages - 1 - left <= stage < stages - 1) for stage in range(stages)]
