"""Step times of an engine that keeps some layers' weights in host memory and streams them through every step.

As vLLM's prefetching offloader (`PrefetchOffloadConfig`): of every group of layers one lies in host memory, its weights
are copied while the layers before it compute, and two buffers take turns. Be k of L layers streamed, evenly spaced, a
copy w seconds and a layer's share of the step c. A copy may begin when the one before has ended and its buffer is free,
which is when the layer streamed before the last has computed: that leaves (2 L / k - 1) c for a copy, and the other
copies leave it L / k · c, which is less. So steps in a row take the longer of what they take without it and k w: the
link is full, or the copies do not show. The first step after an idle time waits for its first copy too, which is left
out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from calibrate.copy_law import CopyLaw
from calibrate.decode_law import DecodeLaw
from calibrate.latency import StepLatency
from calibrate.model import ModelShape
from calibrate.profile import Profile
from calibrate.skew import Spread
from ground.assumption import Assumption

BUFFERS = 2


def layer_bytes(model: ModelShape, tp: int) -> int:
    """Bytes of one layer's weights on one rank."""
    return model.weight_bytes(tp) - replace(model, layers=model.layers - 1).weight_bytes(tp)


def freed_bytes(model: ModelShape, tp: int, layers: int) -> int:
    """Bytes that one rank's device need not hold when so many layers are streamed; the buffers it must."""
    return max(0, layers - BUFFERS) * layer_bytes(model, tp)


class StreamedLatency(StepLatency):
    """`layers` are streamed; `host_bandwidth` in bytes/s stands in where the profile holds no copies.

    Raises:
        UserError: those of a `StepLatency`; the profile holds no copies and no bandwidth is given.
    """

    def __init__(
        self, profile: Profile, model: ModelShape, *, layers: int, host_bandwidth: float | None, **rest: Any
    ) -> None:
        super().__init__(profile, model, **rest)
        size = layer_bytes(model, self.parallelism.tensor)
        law = CopyLaw(profile, size, host_bandwidth)
        seconds, inside = law(0, 1)
        self.stream_seconds = layers * seconds  # a step takes at least so long
        note = f"a step copies {layers} of {model.layers} layers of {size} bytes each"
        if not inside:
            note += ", beyond the copies that were measured"
        self.assumptions += [
            law.assumption,
            Assumption("engine.weight_offload.seconds", self.stream_seconds, "s", "assumed", note),
        ]

    def step(
        self, prefills: Sequence[tuple[int, int]], decodes: int, kv_tokens: int, spread: Spread | None = None
    ) -> float:
        seconds = super().step(prefills, decodes, kv_tokens, spread)
        return max(seconds, self.stream_seconds) if prefills else seconds  # the laws of decoding know it

    def _law(self, decodes: int) -> DecodeLaw:
        law = super()._law(decodes)
        least = max(law.least, self.stream_seconds)
        law = self._laws[decodes] = DecodeLaw(decodes, law.fixed, law.attention, least, law.outside, law.extrapolated)
        return law
