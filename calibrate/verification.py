"""Seconds of a step that verifies drafts: several tokens of a sequence, each seeing those before it, in one pass.

Token-wise kernels take what as many tokens of a prompt take, and lm_head and sampler what as many sequences take, since
every verified token is sampled. What is left is attention:

- on a CPU the decoder attends each sequence that verifies as a short prompt behind its context, in a call of its own:
  what the profile measured of prompts;
- on a GPU one kernel reads a sequence's keys and values once for all its new tokens. Profiles do not hold that. It is
  taken as long as the decode attention of these sequences, which reads as many bytes, plus the FLOPs of the query-key
  pairs beyond one token's, at the rate of the profile's largest prompt, as if reading and computing did not overlap.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from calibrate.attention_law import prefill_work
from calibrate.batch import Batch
from calibrate.latency import StepLatency
from calibrate.model import ModelShape
from calibrate.profile import Profile
from calibrate.skew import Spread
from ground.assumption import Assumption

Work = Sequence[tuple[int, int]]  # (new tokens, tokens already cached) of each sequence


class VerifyLatency(StepLatency):
    """A `StepLatency` whose sequences may compute several tokens a step, and that knows what drafting takes.

    `draft` is the law of the draft model, which drafts `tokens` a step; None: looking up takes `lookup_seconds` of the
    host for every sequence.
    """

    def __init__(
        self,
        profile: Profile,
        model: ModelShape,
        *,
        tokens: int,
        draft: VerifyLatency | None = None,
        lookup_seconds: float = 0.0,
        **settings: Any,
    ) -> None:
        """The other arguments, and errors, are those of `StepLatency`."""
        super().__init__(profile, model, **settings)
        self.tokens = tokens
        self.draft = draft
        if draft is not None:
            draft.extrapolated = self.extrapolated
        self.lookup_seconds = lookup_seconds
        self._one_call_each = profile.measured_on_cpu
        chunk, cached = self.prefill.keys[-1], self.prefill.curves[-1].high
        self._pair_seconds = self.prefill(chunk, cached) / prefill_work(chunk, cached)
        note = (
            "each sequence that verifies attends as a prompt behind its context, as measured"
            if self._one_call_each
            else "as decode attention, and the further query-key pairs at the rate of the largest prompt measured"
        )
        self.assumptions.append(Assumption("engine.speculative.attention", model.name, "", "assumed", note))

    def verify(self, prefills: Work, verified: Work, spread: Spread | None = None) -> float:
        """Seconds of one step; `verified` are the decoding sequences, each with its drafts and one token more.

        `spread` is of their contexts. Where nobody has a draft it is what `step` says.
        """
        kv_tokens = sum(cached for _, cached in verified)
        if all(new == 1 for new, _ in verified):
            return self.step(prefills, len(verified), kv_tokens, spread)
        if prefills and self.attention.one_kernel:
            batch = Batch(prefills, len(verified), kv_tokens, spread).one_token_each()
            if not batch.prefills:
                prefills, verified = (), [*prefills, *verified]
                kv_tokens, spread = batch.kv_tokens, batch.spread
        sequences = len(prefills) + len(verified)
        sampled = len(prefills) + sum(new for new, _ in verified)
        tokens = sum(new for new, _ in (*prefills, *verified))
        padded = self.computed_tokens(tokens, prefills=True)
        kernels = self._tokenwise(padded, sampled) + self._verify_attention(prefills, verified, kv_tokens, spread)
        if self.experts is not None:
            kernels += self._shared(padded)
        host = self.host(sequences, tokens - sequences)
        return max(kernels, host) if self.host_overlaps else kernels + host

    def drafting(self, prefills: Work, verified: Work, sequences: int, kv_tokens: int) -> float:
        """Seconds behind such a step to draft for `sequences` that then have `kv_tokens` in all.

        A draft model first computes the tokens that the step computed, its own prompts and contexts, which gives the
        first draft; then one token a sequence for each further one (vLLM, `v1/spec_decode`). Contexts are as if all
        drafts had been accepted.
        """
        if self.draft is None:
            return sequences * self.lookup_seconds
        first = self.draft.verify(prefills, verified)
        if self.tokens == 1 or not sequences:
            return first
        return first + float(self.draft.decode_run(sequences, kv_tokens, self.tokens - 1).sum())

    def _verify_attention(self, prefills: Work, verified: Work, kv_tokens: int, spread: Spread | None) -> float:
        if self._one_call_each:
            single = [cached for new, cached in verified if new == 1]
            spans = [one for one in verified if one[0] > 1]
            return self._attention_of([*prefills, *spans], len(single), sum(single), None)
        sequences = len(verified)
        further = sum(prefill_work(new, cached) - prefill_work(1, cached) for new, cached in verified)
        if prefills:
            seconds = self._attention_of(prefills, sequences, kv_tokens, spread)
        else:
            law = self._laws.get(sequences) or self._law(sequences)
            seconds = float(self._decode_attention(law, kv_tokens, 1, spread)[0])
        return seconds + further * self._pair_seconds
