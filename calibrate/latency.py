"""Seconds of one engine step: profile × model × parallelism, compiled once and then asked millions of times."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence

import numpy as np
import polars as pl

from calibrate.attention_law import AttentionLaw, rows_over
from calibrate.batch import Batch
from calibrate.collective_law import Collectives
from calibrate.copy_law import CopyLaw
from calibrate.curve import Curve, Surface
from calibrate.decode_law import DecodeLaw
from calibrate.exchange import Exchange
from calibrate.experts import ExpertsLaw
from calibrate.layer_curves import summed
from calibrate.links import collectives_of
from calibrate.model import ModelShape
from calibrate.parallelism import Parallelism
from calibrate.profile import Profile
from calibrate.profile_sources import provenance, source_of, stand_ins
from calibrate.skew import Skew, Spread
from calibrate.skew_models import skew_of
from calibrate.uncounted import uncounted
from ground.assumption import Assumption
from ground.errors import UserError


class StepLatency:
    """The time of a step is the sum of its kernels, each called as often as the model calls it, and of the host.

    Token-wise kernels are one curve over the step's tokens, padded to the next captured CUDA graph where one is large
    enough; lm_head and sampler are one over its sequences. Attention is `AttentionLaw`'s; the experts' `ExpertsLaw`'s,
    over the tokens of all engines that share them. Ranks exchange a hidden state after each attention and each MLP.
    `overhead` is the host's share of a step: added to it, or hidden behind it where `host_overlaps`.

    `extrapolated` counts, by kernel class, the steps that asked outside the measured grid.

    Args:
        graph_sizes: batch sizes of captured CUDA graphs, rising; empty: none.
        graphs_decode_only: whether a step with a prefill runs without one, unpadded.
        host_overhead: seconds of a step's host work, where the profile did not measure it.
        skew: whether decoding sequences of unequal length take longer than at their mean, where the profile knows.
        copies: what copying KV blocks takes, where an engine does so.

    Raises:
        UserError: the profile is of another model or tensor parallelism, lacks a kernel class or layer, or nobody
            measured the collectives that are needed.
    """

    def __init__(
        self,
        profile: Profile,
        model: ModelShape,
        tp: int = 1,
        *,
        parallelism: Parallelism | None = None,
        collectives: Collectives | None = None,
        graph_sizes: Sequence[int] = (),
        graphs_decode_only: bool = False,
        host_overlaps: bool = False,
        host_overhead: float | None = None,
        skew: bool = True,
        copies: CopyLaw | None = None,
    ) -> None:
        self.parallelism = parallelism or Parallelism(tp)
        tp = self.parallelism.tensor
        _check_match(profile, model, tp)
        self.profile = profile
        self.model = model
        self.assumptions: list[Assumption] = [provenance(profile), *stand_ins(profile)]
        self.extrapolated: Counter[str] = Counter()
        self.dense = summed(profile, model.calls(), "dense", "tokens")
        self.per_sequence = summed(profile, model.calls(), "per_sequence", "sequences")
        self.skew = self._skew(profile, skew)
        self.attention = AttentionLaw(profile, model.layers, self.skew)
        self.prefill, self.decode = self.attention.prefill, self.attention.decode
        self.experts = self._experts_law(profile) if model.experts else None
        self.exchange = self._exchange_of(profile, collectives)
        self.overhead = self._overhead_rows(profile, host_overhead)
        self.copies = copies
        if copies is not None:
            self.assumptions.append(copies.assumption)
        self.host_overlaps = host_overlaps
        self._graph_sizes = list(graph_sizes)
        self._prefill_graph_sizes = [] if graphs_decode_only else self._graph_sizes
        self._laws: dict[int, DecodeLaw] = {}
        # Token-wise kernels by (padded) tokens, and those by sequences: seconds, and whether outside the grid.
        self._by_tokens: dict[int, tuple[float, bool]] = {}
        self._by_sequences: dict[int, tuple[float, bool]] = {}
        only = self.overhead.curves[0]
        is_constant = len(self.overhead.curves) == 1 and len(only.ys) == 1
        self._constant_host = only.ys[0] if is_constant else None

    @property
    def asks_spread(self) -> bool:
        """Whether a step's time depends on how unequal the decoding contexts are."""
        return self.skew is not None

    def step(
        self, prefills: Sequence[tuple[int, int]], decodes: int, kv_tokens: int, spread: Spread | None = None
    ) -> float:
        """Seconds of one step of an engine on its own; the arguments are a `Batch`'s. An empty step takes no time."""
        if prefills and self.attention.one_kernel:
            prefills, decodes, kv_tokens, spread = Batch(prefills, decodes, kv_tokens, spread).one_token_each()
        if prefills:
            tokens = decodes
            for new, _ in prefills:
                tokens += new
            sequences, padded = decodes + len(prefills), _next_size(self._prefill_graph_sizes, tokens)
            kernels = self._tokenwise(padded, sequences, decodes)
            kernels += self._attention_of(prefills, decodes, kv_tokens, spread)
            if self.experts is not None:
                kernels += self._shared(padded)
            host = self.host(sequences, tokens - sequences)
            return max(kernels, host) if self.host_overlaps else kernels + host
        if not decodes:
            return 0.0
        if self.skew is not None and spread is not None:
            return float(self.decode_run(decodes, kv_tokens, 1, spread)[0])
        law = self._laws.get(decodes) or self._law(decodes)
        law.count(kv_tokens)
        return law.seconds(kv_tokens)

    def decode_law(self, decodes: int) -> DecodeLaw | None:
        """The time of a step that only decodes as many sequences; None where it depends on how long each one is."""
        return (self._laws.get(decodes) or self._law(decodes)) if self.skew is None else None

    def decode_run(self, decodes: int, kv_tokens: int, steps: int, spread: Spread | None = None) -> np.ndarray:
        """Seconds of `steps` consecutive decode steps, (steps,): each of the sequences' contexts grows by one a step.

        Bit for bit what `step` gives for each of them.
        """
        law = self._laws.get(decodes) or self._law(decodes)
        if self.skew is None or spread is None:
            law.count(kv_tokens, steps)
            return law.seconds.many(_contexts(decodes, kv_tokens, steps))
        seconds = self._decode_attention(law, kv_tokens, steps, spread)
        seconds += law.fixed
        return np.maximum(seconds, law.least, out=seconds)

    def swap(self, out: int, into: int) -> float:
        """Seconds to copy so many KV blocks out of the device and into it."""
        if self.copies is None:
            raise ValueError("a step swaps blocks, and no law of copies was given")
        seconds, inside = self.copies(out, into)
        if not inside:
            self.extrapolated["copy"] += 1
        return seconds

    def group_step(self, batches: Sequence[Batch]) -> float:
        """Seconds of one step of all engines that share experts, in lock-step: the slowest sets the pace.

        An engine that has nothing to do computes one token of no request, as the others wait for its part.
        """
        if self.attention.one_kernel:
            batches = [batch.one_token_each() for batch in batches]
        if not any(batch.prefills for batch in batches):
            return float(self.group_decode_run(batches, 1)[0])
        padded = self._padded_together(batches)
        own = [
            self._tokenwise(tokens, max(1, batch.decodes + len(batch.prefills))) + self._attention_of(*batch)
            for batch, tokens in zip(batches, padded, strict=True)
        ]
        return float(self._with_host(batches, np.array([max(own) + self._shared(sum(padded))]))[0])

    def group_decode_run(self, batches: Sequence[Batch], steps: int) -> np.ndarray:
        """The same for `steps` steps in a row in which no engine prefills, (steps,)."""
        padded = self._padded_together(batches)
        own = np.zeros(steps)
        for batch, tokens in zip(batches, padded, strict=True):
            seconds = np.full(steps, self._tokenwise(tokens, max(1, batch.decodes)))
            if batch.decodes:
                law = self._laws.get(batch.decodes) or self._law(batch.decodes)
                seconds += self._decode_attention(law, batch.kv_tokens, steps, batch.spread)
            np.maximum(own, seconds, out=own)
        return self._with_host(batches, own + self._shared(sum(padded)))

    def host(self, sequences: int, extra_tokens: int) -> float:
        """Seconds of the host's part of a step; `extra_tokens` are those beyond one a sequence.

        Outside its grid it keeps the border's value: there is no law in bytes or FLOPs to go on by.
        """
        if self._constant_host is not None:
            return self._constant_host
        rows = self.overhead
        row = min(max(sequences, rows.keys[0]), rows.keys[-1])
        low, high = rows.cell(row)
        return rows(row, min(extra_tokens, rows.curves[low].high, rows.curves[high].high))

    def attention_of_decodes(self, decodes: int) -> Curve:
        """Seconds of a step's decode attention over the sum of cached tokens, of as many sequences equally long."""
        return (self._laws.get(decodes) or self._law(decodes)).attention

    def computed_tokens(self, tokens: int, *, prefills: bool) -> int:
        """Tokens that a step computes, with those that pad it to the next captured graph."""
        return _next_size(self._prefill_graph_sizes if prefills else self._graph_sizes, tokens)

    @property
    def varies(self) -> bool:
        """Whether some tokens of a step run token-wise kernels that others do not."""
        return False

    def varying(self, prefill_tokens: int, decodes: int) -> float:
        """Seconds of those token-wise kernels that not all tokens of a step run; part of no curve of this object."""
        return 0.0

    # The parts of a step.

    def _tokenwise(self, padded: int, sequences: int, decodes: int = 0) -> float:
        """All of an engine's own kernels but attention, and what its tensor-parallel ranks exchange. How many of the
        tokens decode matters only where layers are pruned."""
        by_tokens = self._by_tokens.get(padded)
        if by_tokens is None:
            outside = not self.dense.covers(padded)
            by_tokens = self._by_tokens[padded] = (self.dense(padded) + self.exchange.hidden_states(padded), outside)
        by_sequences = self._by_sequences.get(sequences)
        if by_sequences is None:
            outside = not self.per_sequence.covers(sequences)
            seconds = self.per_sequence(sequences) + self.exchange.logits(sequences)
            by_sequences = self._by_sequences[sequences] = (seconds, outside)
        if by_tokens[1]:
            self.extrapolated["dense"] += 1
        if by_sequences[1]:
            self.extrapolated["per_sequence"] += 1
        return by_tokens[0] + by_sequences[0]

    def _attention_of(
        self, prefills: Sequence[tuple[int, int]], decodes: int, kv_tokens: int, spread: Spread | None
    ) -> float:
        alone = (self._laws.get(decodes) or self._law(decodes)).attention if decodes else None
        if not prefills:
            return alone(kv_tokens) if alone else 0.0
        seconds, inside = self.attention.mixed(prefills, decodes, kv_tokens, spread, alone)
        if not inside:
            self.extrapolated["attention"] += 1
        return seconds

    def _decode_attention(self, law: DecodeLaw, kv_tokens: int, steps: int, spread: Spread | None) -> np.ndarray:
        """Attention of a decode run, (steps,)."""
        law.count(kv_tokens, steps)
        contexts = _contexts(law.decodes, kv_tokens, steps)
        attention = law.attention.many(contexts)
        if self.skew is not None and spread is not None:
            i = np.arange(steps)
            squares = spread.squares + i * (2 * kv_tokens) + i * i * law.decodes
            longest = spread.longest + i
            attention *= 1.0 + self.skew.relative(
                law.decodes, contexts, squares.astype(np.float64), longest.astype(np.float64)
            )
        return attention

    def _shared(self, tokens: int) -> float:
        """The experts and their exchange, for the tokens of all engines that share them."""
        if self.experts is None:
            return 0.0
        if not self.experts.covers(tokens):
            self.extrapolated["moe"] += 1
        return self.experts(tokens) + self.exchange.experts(tokens)

    def _with_host(self, batches: Sequence[Batch], kernels: np.ndarray) -> np.ndarray:
        host = max(
            self.host(
                max(1, batch.decodes + len(batch.prefills)),
                sum(new for new, _ in batch.prefills) - len(batch.prefills),
            )
            for batch in batches
        )
        return np.maximum(kernels, host) if self.host_overlaps else kernels + host

    def _law(self, decodes: int) -> DecodeLaw:
        curve = self.decode.at(decodes)
        padded = self._padded(decodes)
        outside = []
        if not self.dense.covers(padded):
            outside.append("dense")
        if not self.per_sequence.covers(decodes):
            outside.append("per_sequence")
        if not self.decode.keys[0] <= decodes <= self.decode.keys[-1]:
            outside.append("attention")
        # Of engines that share experts nobody asks this law for them.
        if self.experts is not None and self.parallelism.data == 1 and not self.experts.covers(padded):
            outside.append("moe")
        host = self.host(decodes, 0)
        with uncounted(self.extrapolated):  # a law is no step: its steps are counted when they are asked for
            fixed = self._tokenwise(padded, decodes, decodes) + self._shared(padded)
        law = self._laws[decodes] = DecodeLaw(
            decodes,
            fixed if self.host_overlaps else fixed + host,
            Curve([decodes * kv for kv in curve.xs], curve.ys),
            host if self.host_overlaps else 0.0,
            outside,
            self.extrapolated,
        )
        return law

    def _padded(self, tokens: int) -> int:
        """Tokens that a step computes which only decodes."""
        return _next_size(self._graph_sizes, tokens)

    def _padded_together(self, batches: Sequence[Batch]) -> list[int]:
        """The same for engines in lock-step, which replay graphs of one size (vLLM pads to the largest)."""
        tokens = [max(1, batch.decodes + sum(new for new, _ in batch.prefills)) for batch in batches]
        most = self._padded(max(tokens))
        return [most] * len(tokens) if self._graph_sizes and most <= self._graph_sizes[-1] else tokens

    # Compiling.

    def _skew(self, profile: Profile, wanted: bool) -> Skew | None:
        if not wanted:
            note = "switched off: decoding sequences are taken to be as long as their mean"
            self.assumptions.append(Assumption("engine.skew", "none", "", "user", note))
            return None
        found = skew_of(profile)
        if found is None:
            note = f"profile {profile.name} does not hold it: decoding sequences are taken to be as long as their mean"
            self.assumptions.append(Assumption("engine.skew", "none", "", "assumed", note))
            return None
        skew, name = found
        errors = profile.errors.get(f"skew.{name}", {})
        note = (
            f"what unequal contexts cost, by {name}; median error {errors['held_out_median']:.1%} on the profile's "
            f"{errors['held_out_points']:.0f} unequal batches"
            if errors
            else f"what unequal contexts cost, by {name}"
        )
        self.assumptions.append(Assumption("engine.skew", name, "", source_of(profile), note))
        return skew

    def _experts_law(self, profile: Profile) -> ExpertsLaw:
        ranks = self.parallelism.tensor * self.parallelism.data
        measured = int(profile.grid.get("expert_slices", 1))
        slices = (1 if self.parallelism.expert else ranks) / measured
        if slices != 1:
            note = (
                f"experts were measured in {measured} slices and are used in {ranks}: time taken linear in their width"
            )
            self.assumptions.append(Assumption("kernel.moe", f"× {1 / slices:g}", "", "assumed", note))
        note = f"each token reaches {self.model.experts_per_token} of {self.model.experts} experts, all equally likely"
        self.assumptions.append(Assumption("engine.routing", "uniform", "", "assumed", note))
        return ExpertsLaw(
            profile.table("moe"), self.model, self._expert_layers(), ranks if self.parallelism.expert else 1, slices
        )

    def _expert_layers(self) -> int:
        """How many of the layers run their experts."""
        return self.model.layers

    def _exchange_of(self, profile: Profile, given: Collectives | None) -> Exchange:
        parallelism = self.parallelism
        if parallelism.tensor == parallelism.pipeline == 1 and (parallelism.data == 1 or self.experts is None):
            return Exchange(self.model, parallelism, None)
        exchange = Exchange(self.model, parallelism, given or collectives_of(profile))
        self.assumptions += exchange.assumptions(profile.device)
        return exchange

    def _overhead_rows(self, profile: Profile, given: float | None) -> Surface:
        """Rows by sequences, over the tokens beyond one a sequence."""
        if "overhead" in profile.tables:
            table = profile.table("overhead").with_columns(extra=pl.col("tokens") - pl.col("sequences"))
            return rows_over(table, "sequences", "extra", 1)
        if given is not None:
            self.assumptions.append(Assumption("engine.host_overhead", given, "s", "user", "given in the scenario"))
            return Surface({1: Curve([0], [given])})
        note = f"profile {profile.name} does not hold it; a step takes its kernels' time and no more"
        self.assumptions.append(Assumption("engine.host_overhead", 0.0, "s", "assumed", note))
        return Surface({1: Curve([0], [0.0])})


def _next_size(graph_sizes: Sequence[int], tokens: int) -> int:
    """The size of the next captured graph, if one is large enough."""
    index = bisect_left(graph_sizes, tokens)
    return graph_sizes[index] if index < len(graph_sizes) else tokens


def _contexts(decodes: int, kv_tokens: int, steps: int) -> np.ndarray:
    """Cached tokens that each step of a decode run reads, (steps,)."""
    return np.arange(kv_tokens, kv_tokens + steps * decodes, decodes, dtype=np.float64)


def _check_match(profile: Profile, model: ModelShape, tp: int) -> None:
    if profile.model is None:
        raise UserError(f"profile {profile.name} is of no model; it must be looked up for {model.name} first")
    differences = profile.model.differences(model)
    if differences:
        raise UserError(
            f"profile {profile.name} is of model {profile.model.name}; the scenario asks for {model.name} "
            f"({', '.join(differences[:2])})"
        )
    if profile.tp != tp:
        raise UserError(
            f"profile {profile.name} of {model.name} is of tp = {profile.tp}; the scenario asks for tp = {tp}"
        )
