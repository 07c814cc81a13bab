"""What an engine asks of whoever says how long its steps take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from calibrate.batch import Batch
from calibrate.decode_law import DecodeLaw
from calibrate.skew import Spread


class StepTimes(Protocol):
    """What the engine asks of `calibrate.latency.StepLatency`."""

    @property
    def asks_spread(self) -> bool:
        """Whether its times depend on how unequal the decoding contexts are."""

    def step(
        self, prefills: Sequence[tuple[int, int]], decodes: int, kv_tokens: int, spread: Spread | None = None
    ) -> float:
        """Seconds of one step; prefills are (new tokens, tokens already cached). It may have neither kind of work."""

    def decode_law(self, decodes: int) -> DecodeLaw | None:
        """The time of a step that only decodes as many sequences; None where their sum of tokens does not tell it."""

    def decode_run(self, decodes: int, kv_tokens: int, steps: int, spread: Spread | None = None) -> np.ndarray:
        """Seconds of each of `steps` decode steps in a row, bit for bit what `step` gives; a new array, (steps,)."""

    def host(self, sequences: int, extra_tokens: int) -> float:
        """Seconds of the host's part of a step; asked only where there are costs of the host."""

    def swap(self, out: int, into: int) -> float:
        """Seconds to copy KV blocks out of the device and into it; asked only where there are any."""

    def group_step(self, batches: Sequence[Batch]) -> float:
        """Seconds of one step of engines that step together; asked only where there are several."""

    def group_decode_run(self, batches: Sequence[Batch], steps: int) -> np.ndarray:
        """The same for `steps` steps in a row in which no engine prefills, (steps,)."""
