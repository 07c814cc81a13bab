"""Seconds of a step on each stage of a pipeline: the same kernels, divided by layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np

from calibrate.batch import Batch
from calibrate.curve import Curve
from calibrate.latency import StepLatency
from calibrate.model import ModelShape
from calibrate.parallelism import Parallelism, stage_layers
from calibrate.profile import Profile
from calibrate.skew import Spread
from calibrate.uncounted import uncounted
from ground.assumption import Assumption

# Token-wise kernels that are run once and not in every layer: by the first stage, and by the last.
_FIRST, _LAST = "embedding", "final_layernorm"

_Seconds = TypeVar("_Seconds", float, np.ndarray)


class PipelineLatency(StepLatency):
    """A `StepLatency` of an engine whose layers lie on several stages.

    A stage takes its layers' share of what all layers take; the first also embeds, the last also computes logits and
    samples. The host's part is taken whole by every stage, since each prepares the batch for itself. What a stage sends
    to the next occupies neither: it only arrives later.
    """

    def __init__(self, profile: Profile, model: ModelShape, *, parallelism: Parallelism, **settings: Any) -> None:
        """`settings` are those of `StepLatency`. Raises UserError: as that."""
        super().__init__(profile, model, parallelism=parallelism, **settings)
        stages = parallelism.pipeline
        self.layers = stage_layers(model.layers, stages)
        self._shares = [layers / model.layers for layers in self.layers]
        self._first, self._last = (_edge(profile, layer) for layer in (_FIRST, _LAST))
        self._ends: dict[tuple[int, int], tuple[float, float]] = {}  # by (padded tokens, sequences)
        self._of_decodes: dict[int, tuple[float, float, float]] = {}
        self._sends: dict[int, float] = {}  # by padded tokens
        note = (
            f"layers a stage: {', '.join(map(str, self.layers))} (as vLLM divides them); every stage takes the host's "
            "whole part, and what it sends to the next occupies neither"
        )
        self.assumptions.append(Assumption("engine.pipeline_parallel", stages, "stages", "assumed", note))

    def stages(
        self, prefills: Sequence[tuple[int, int]], decodes: int, kv_tokens: int, spread: Spread | None = None
    ) -> list[float]:
        """Seconds on each stage of one micro-batch; the arguments are a `Batch`'s, which is not empty."""
        if not prefills:
            return [float(run[0]) for run in self.stage_runs(decodes, kv_tokens, 1, spread)]
        if self.attention.one_kernel:
            prefills, decodes, kv_tokens, spread = Batch(prefills, decodes, kv_tokens, spread).one_token_each()
        tokens = decodes + sum(new for new, _ in prefills)
        sequences, padded = decodes + len(prefills), self.computed_tokens(tokens, prefills=True)
        in_layers = self._attention_of(prefills, decodes, kv_tokens, spread)
        host = self.host(sequences, tokens - sequences)
        kernels = self._divided(self._fixed(padded, sequences), in_layers)
        return [max(own, host) if self.host_overlaps else own + host for own in kernels]

    def stage_runs(self, decodes: int, kv_tokens: int, steps: int, spread: Spread | None = None) -> list[np.ndarray]:
        """The same of `steps` decode steps in a row of as many sequences, each (steps,)."""
        law = self._laws.get(decodes) or self._law(decodes)
        attention = self._decode_attention(law, kv_tokens, steps, spread)
        host = self.host(decodes, 0)
        kernels = self._divided(self._fixed_of_decodes(decodes), attention)
        return [np.maximum(own, host) if self.host_overlaps else own + host for own in kernels]

    def sends(self, prefill_tokens: int, decodes: int) -> float:
        """Seconds until the hidden states of a micro-batch have come from one stage to the next."""
        padded = self.computed_tokens(prefill_tokens + decodes, prefills=prefill_tokens > 0)
        if padded not in self._sends:
            self._sends[padded] = self.exchange.stage(padded)
        return self._sends[padded]

    def _divided(self, fixed: tuple[float, float, float], attention: _Seconds) -> list[_Seconds]:
        """All kernels with what they exchange, of each stage; `fixed` is what `_fixed` says."""
        first, layers, last = fixed
        kernels = [share * (layers + attention) for share in self._shares]
        kernels[0] += first
        kernels[-1] += last
        return kernels

    def _fixed(self, padded: int, sequences: int) -> tuple[float, float, float]:
        """Kernels that do not depend on what is cached, with what they exchange: those of the first stage alone, of all
        layers, of the last stage alone."""
        whole = self._tokenwise(padded, sequences)
        ends = self._ends.get((padded, sequences))
        if ends is None:
            first = self._first(padded) + self.exchange.all_reduce(padded)
            last = self._last(padded) + self.per_sequence(sequences) + self.exchange.logits(sequences)
            ends = self._ends[padded, sequences] = (first, last)
        first, last = ends
        return first, max(0.0, whole - first - last) + self._shared(padded), last

    def _fixed_of_decodes(self, decodes: int) -> tuple[float, float, float]:
        """The same of a step that only decodes. What of it lies outside the grid its `DecodeLaw` counts."""
        if decodes not in self._of_decodes:
            with uncounted(self.extrapolated):
                padded = self.computed_tokens(decodes, prefills=False)
                self._of_decodes[decodes] = self._fixed(padded, decodes)
        return self._of_decodes[decodes]


def _edge(profile: Profile, layer: str) -> Curve:
    """A token-wise kernel that is run once."""
    table = profile.table("dense")
    rows = table.filter(table["layer"] == layer).sort("tokens")
    return Curve(rows["tokens"].to_list(), rows["seconds"].to_list())
