"""How an engine is spread over GPUs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Parallelism:
    """Ranks of one engine: `tensor` shard every layer; `data` are engines that share a mixture of experts.

    With `expert` the tensor × data ranks each hold whole experts; without it every expert is sharded over them.
    """

    tensor: int = 1
    data: int = 1
    expert: bool = False
    custom_all_reduce: bool = True  # vLLM's own kernel; without it NCCL's

    @property
    def gpus(self) -> int:
        return self.tensor * self.data
