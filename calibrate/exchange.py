"""What the ranks of an engine, and engines that share experts, exchange in a step."""

from __future__ import annotations

from math import comb

from calibrate.collective_law import Collectives
from calibrate.model import ModelShape
from calibrate.parallelism import Parallelism
from ground.assumption import Assumption


class Exchange:
    """Seconds of a step's collectives, all layers; nothing where there is nobody to exchange with.

    Without `collectives` (nobody knows them) they are taken to cost nothing, which `assumptions` says.
    """

    def __init__(self, model: ModelShape, parallelism: Parallelism, collectives: Collectives | None) -> None:
        self.model = model
        self.parallelism = parallelism
        self._ranks, self._engines = parallelism.tensor, parallelism.data
        self.collectives = collectives
        wanted = ["all_reduce", "all_reduce_nccl"]
        if not parallelism.custom_all_reduce:
            wanted.reverse()
        self._all_reduce = next(
            (name for name in wanted if collectives and collectives.has(name, self._ranks)), wanted[0]
        )

    def assumptions(self, device: str) -> list[Assumption]:
        """Where the times come from, and which operations nobody measured."""
        collectives = self.collectives
        if collectives is None:
            note = f"nobody measured collectives on {device}: they are taken to cost nothing"
            return [Assumption("engine.collectives", 0.0, "s", "assumed", note)]
        asked = self._operations()
        modelled = [f"{name} × {ranks}" for name, ranks in asked if not collectives.has(name, ranks)]
        stated = []
        if len(modelled) < len(asked):
            note = f"{asked[0][0]} and its like, {collectives.source}"
            stated.append(Assumption("engine.collectives", asked[0][0], "", collectives.word, note))
        if modelled and collectives.fabric is not None:
            note = (
                f"nobody measured them on {device}: latency and bandwidth by NCCL's cost model (src/graph/tuning.cc); "
                f"{collectives.fabric.source}"
            )
            stated.append(Assumption("engine.collectives.modelled", ", ".join(modelled), "", "assumed", note))
        return stated

    def _operations(self) -> list[tuple[str, int]]:
        """What is asked for, and between how many ranks."""
        parallelism, operations = self.parallelism, []
        if self._ranks > 1:
            operations += [(self._all_reduce, self._ranks), ("all_gather", self._ranks)]
        if self._engines > 1 and self.model.experts:
            by_choice = {"all_to_all": ["all_to_all"], "allgather_reducescatter": ["all_gather", "reduce_scatter"]}
            operations += [(name, self._engines) for name in by_choice[parallelism.expert_exchange]]
        if parallelism.pipeline > 1:
            operations.append(("send_recv", 2))
        return operations

    def hidden_states(self, tokens: int) -> float:
        """Between tensor-parallel ranks: after the embedding, each attention and each MLP that is not of experts."""
        return self.reductions * self.all_reduce(tokens)

    def all_reduce(self, tokens: int) -> float:
        """One of them."""
        if self._ranks == 1 or self.collectives is None:
            return 0.0
        size = tokens * self.model.hidden * self.model.dtype_bytes
        return self.collectives.seconds(self._all_reduce, self._ranks, size)

    @property
    def reductions(self) -> int:
        """How many of them."""
        model = self.model
        return 1 + model.layers * (1 if model.experts and self._engines > 1 else 2)

    def logits(self, sequences: int) -> float:
        """Between tensor-parallel ranks: the parts of the vocabulary."""
        if self._ranks == 1 or self.collectives is None:
            return 0.0
        model = self.model
        size = sequences * (model.vocab // self._ranks) * model.dtype_bytes
        return self.collectives.seconds("all_gather", self._ranks, size)

    def experts(self, tokens: int) -> float:
        """Between engines that share experts.

        By default hidden states and router logits are gathered before, and results scattered after (vLLM's
        `allgather_reducescatter`). With `all_to_all` a token goes only to the engines whose experts it was routed to,
        once to each, and the results come back the same way.
        """
        engines = self._engines
        if engines == 1 or self.collectives is None:
            return 0.0
        model, each = self.model, tokens / engines * self.model.dtype_bytes
        if self.parallelism.expert_exchange == "all_to_all":
            size = each * model.hidden * engines_reached(model, engines)
            return model.layers * 2 * self.collectives.seconds("all_to_all", engines, size)
        return model.layers * (
            self.collectives.seconds("all_gather", engines, each * model.hidden)
            + self.collectives.seconds("all_gather", engines, each * model.experts)
            + self.collectives.seconds("reduce_scatter", engines, engines * each * model.hidden)
        )

    def stage(self, tokens: int) -> float:
        """Between two stages of a pipeline: hidden states and residual. Every tensor-parallel rank sends its part, and
        the ranks of the next stage gather the whole (vLLM `parallel_state.py`, `send_tensor_dict`)."""
        if self.parallelism.pipeline == 1 or self.collectives is None:
            return 0.0
        part = tokens * self.model.hidden * self.model.dtype_bytes / self._ranks
        gathered = self.collectives.seconds("all_gather", self._ranks, part)
        return 2 * (self.collectives.seconds("send_recv", 2, part) + gathered)


def engines_reached(model: ModelShape, engines: int) -> float:
    """How many of the engines a token's experts lie on, if all experts are equally likely: its mean."""
    beside = model.experts - model.experts // engines  # experts that do not lie on a certain engine
    missed = comb(beside, model.experts_per_token) / comb(model.experts, model.experts_per_token)
    return engines * (1.0 - missed)
