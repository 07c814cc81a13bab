"""A profile of an engine that can only be timed as a whole: from the seconds of its lone steps.

A lone step computes one prompt, or one token of each of equally long sequences. What a step takes splits into a part
that follows its tokens and a part that follows its attention, so that steps which do both can be put together:

- of a prompt the attention is so many seconds a query-key pair, fitted once to all lengths, so that it is known behind
  cached tokens too. The rest goes by tokens, so every measured length above the largest batch is met exactly;
- of a decode batch the attention is what grows with the context; the rest, at context 0, goes by tokens.

Nobody can say which kernel takes how much of the part that goes by tokens: it is spread evenly over their calls.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl

from calibrate.attention_law import prefill_work
from calibrate.model import ModelShape
from calibrate.profile import Profile, Provenance


@dataclass(frozen=True)
class LoneSteps:
    """Seconds of prefills by tokens, and of decode steps by (sequences, cached tokens of each)."""

    prefills: Mapping[int, float]
    decodes: Mapping[tuple[int, float], float]

    def profile(self, model: ModelShape, *, name: str, device: str, versions: dict[str, str], threads: int) -> Profile:
        """As a profile of the model; its tables give every lone step back, but for the fit within a decode batch."""
        by_tokens, decode_attention = self._decode_parts()
        pair = self._pair()
        # A prompt no longer than the largest batch has its part from there: there is one curve over tokens.
        largest = max(by_tokens)
        by_tokens |= {
            n: max(0.0, seconds - pair * prefill_work(n, 0)) for n, seconds in self.prefills.items() if n > largest
        }
        calls = model.calls()
        dense = [call for call in calls if call.kernel_class == "dense"]
        share = 1.0 / sum(call.calls for call in dense)
        reach = max(max(self.prefills), model.max_context)
        prefill_attention = [
            (n, cached, 0, 0, pair * prefill_work(n, cached)) for n in self.prefills for cached in (0, reach)
        ]
        attention = pl.DataFrame(
            prefill_attention + [(0, 0, n, context, seconds) for (n, context), seconds in decode_attention.items()],
            schema={
                "prefill_chunk": pl.Int64,
                "kv_prefill": pl.Int64,
                "n_decode": pl.Int64,
                "kv_decode": pl.Float64,
                "seconds": pl.Float64,
            },
            orient="row",
        )
        tables = {
            "dense": pl.DataFrame(
                [
                    {"layer": call.layer, "tokens": tokens, "seconds": share * seconds}
                    for call in dense
                    for tokens, seconds in sorted(by_tokens.items())
                ]
            ),
            "per_sequence": pl.DataFrame(
                [
                    {"layer": call.layer, "sequences": n, "seconds": 0.0}
                    for call in calls
                    if call.kernel_class == "per_sequence"
                    for n in (1, largest)
                ]
            ),
            "attention": attention.with_columns(pl.col("seconds") / model.layers),
        }
        note = "whole steps of a running engine, one prompt or one decode batch at a time"
        return Profile(
            name=name,
            device=device,
            model=model,
            tp=1,
            dtype="float32",
            provenance=Provenance("measured", note, ""),
            tables=tables,
            versions=versions,
            threads=threads,
        )

    def _pair(self) -> float:
        """p of a + b · tokens + p · pairs, fitted to relative errors; so that no part takes less than no time."""
        tokens = np.array(sorted(self.prefills), dtype=float)
        seconds = np.array([self.prefills[int(n)] for n in tokens])
        pairs = np.array([prefill_work(n, 0) for n in tokens])
        terms = np.stack([np.ones_like(tokens), tokens, pairs], axis=1) / seconds[:, None]
        fitted = float(np.linalg.lstsq(terms, np.ones_like(tokens), rcond=None)[0][2])
        return min(max(fitted, 0.0), float((seconds / pairs).min()))

    def _decode_parts(self) -> tuple[dict[int, float], dict[tuple[int, float], float]]:
        """Seconds by sequences at context 0, and by (sequences, context) of what the context adds."""
        by_sequences: dict[int, float] = {}
        attention: dict[tuple[int, float], float] = {}
        for batch in sorted({batch for batch, _ in self.decodes}):
            points = sorted((context, seconds) for (n, context), seconds in self.decodes.items() if n == batch)
            contexts, seconds = map(np.array, zip(*points, strict=True))
            at_none = float(np.polyfit(contexts, seconds, 1)[1]) if len(points) > 1 else float(seconds[0])
            # Noise may tilt the line; neither part takes less than no time.
            at_none = min(max(at_none, 0.0), float(seconds.min()))
            by_sequences[batch] = at_none
            attention[batch, 0.0] = 0.0
            for context, measured in points:
                attention[batch, context] = measured - at_none
        return by_sequences, attention
