"""What the ranks of an engine, and engines that share experts, exchange in a step."""

from __future__ import annotations

from calibrate.collective_law import Collectives
from calibrate.model import ModelShape
from calibrate.parallelism import Parallelism
from ground.assumption import Assumption


class Exchange:
    """Seconds of a step's collectives, all layers; nothing where there is nobody to exchange with.

    Without `collectives` (nobody measured them) they are taken to cost nothing, which `assumption` says.
    """

    def __init__(self, model: ModelShape, parallelism: Parallelism, collectives: Collectives | None) -> None:
        self._model = model
        self._ranks, self._engines = parallelism.tensor, parallelism.data
        self._collectives = collectives
        wanted = ["all_reduce", "all_reduce_nccl"]
        if not parallelism.custom_all_reduce:
            wanted.reverse()
        self._all_reduce = next(
            (name for name in wanted if collectives and collectives.has(name, self._ranks)), wanted[0]
        )

    def assumption(self, device: str) -> Assumption:
        if self._collectives is None:
            note = f"nobody measured collectives on {device}: they are taken to cost nothing"
            return Assumption("engine.collectives", 0.0, "s", "assumed", note)
        note = f"{self._all_reduce} and its like, {self._collectives.source}"
        return Assumption("engine.collectives", self._all_reduce, "", "imported", note)

    def hidden_states(self, tokens: int) -> float:
        """Between tensor-parallel ranks: after the embedding, each attention and each MLP that is not of experts."""
        if self._ranks == 1 or self._collectives is None:
            return 0.0
        model = self._model
        reductions = 1 + model.layers * (1 if model.experts and self._engines > 1 else 2)
        return reductions * self._collectives.seconds(
            self._all_reduce, self._ranks, tokens * model.hidden * model.dtype_bytes
        )

    def logits(self, sequences: int) -> float:
        """Between tensor-parallel ranks: the parts of the vocabulary."""
        if self._ranks == 1 or self._collectives is None:
            return 0.0
        model = self._model
        size = sequences * (model.vocab // self._ranks) * model.dtype_bytes
        return self._collectives.seconds("all_gather", self._ranks, size)

    def experts(self, tokens: int) -> float:
        """Between engines that share experts: hidden states and router logits gathered before, results scattered after
        (vLLM's default `allgather_reducescatter`)."""
        engines = self._engines
        if engines == 1 or self._collectives is None:
            return 0.0
        model, each = self._model, tokens / engines * self._model.dtype_bytes
        return model.layers * (
            self._collectives.seconds("all_gather", engines, each * model.hidden)
            + self._collectives.seconds("all_gather", engines, each * model.experts)
            + self._collectives.seconds("reduce_scatter", engines, engines * each * model.hidden)
        )
