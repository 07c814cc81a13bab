"""Seconds of one engine step: profile × model × tensor parallelism, compiled once and then asked millions of times."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import polars as pl

from calibrate.curve import Curve, Surface, add
from calibrate.model import ModelShape
from calibrate.profile import Profile
from ground.assumption import Assumption
from ground.errors import UserError


class _DecodeLaw(NamedTuple):
    """A pure decode step of n sequences: `fixed` + `attention`(sum of their cached tokens)."""

    fixed: float
    attention: Curve
    outside: tuple[str, ...]  # kernel classes whose grid n itself leaves


class StepLatency:
    """The time of a step is the sum of its kernels, each called as often as the model calls it, and of the host.

    Token-wise kernels are one curve over the step's tokens, lm_head and sampler one over its sequences. Each prefill
    adds its attention, linear in FLOPs between chunk sizes; the decoding sequences are looked up at their number and
    mean context. `overhead` is the host's share of a step; where the profile has none it is an assumption of 0.

    `extrapolated` counts, by kernel class, the steps that asked outside the measured grid.

    Raises:
        UserError: the profile is of another model or tensor parallelism, or lacks a kernel class or layer.
    """

    def __init__(self, profile: Profile, model: ModelShape, tp: int = 1) -> None:
        _check_match(profile, model, tp)
        self.profile = profile
        self.assumptions: list[Assumption] = [_provenance(profile)]
        if tp > 1:
            note = "tensor-parallel collectives are not modelled: the profile times one rank's kernels"
            self.assumptions.append(Assumption("engine.collectives", 0.0, "s", "assumed", note))
        self.extrapolated: Counter[str] = Counter()
        self.dense = _summed(profile, model, "dense", "tokens")
        self.per_sequence = _summed(profile, model, "per_sequence", "sequences")
        attention = profile.table("attention")
        layers = model.layers
        self.prefill = _attention_rows(
            profile, attention.filter(pl.col("n_decode") == 0), ("prefill_chunk", "kv_prefill"), layers
        )
        self.prefill.work = prefill_work
        self.decode = _attention_rows(
            profile, attention.filter(pl.col("prefill_chunk") == 0), ("n_decode", "kv_decode"), layers
        )
        self.overhead = self._overhead_rows(profile)
        self._laws: dict[int, _DecodeLaw] = {}

    def step(self, prefills: Sequence[tuple[int, int]], decodes: int, kv_tokens: int) -> float:
        """Seconds of one step.

        Args:
            prefills: (new tokens, tokens already cached) of each prefilling sequence.
            decodes: sequences that decode one token.
            kv_tokens: sum over those of the tokens already cached.
        """
        if not prefills:
            if not decodes:
                return 0.0
            law = self._laws.get(decodes) or self._law(decodes)
            if law.outside or not law.attention.low <= kv_tokens <= law.attention.high:
                self._count(law, np.array([kv_tokens]))
            return law.fixed + law.attention(kv_tokens)

        tokens, sequences = decodes, decodes + len(prefills)
        outside = False
        attention = 0.0
        for new, cached in prefills:
            tokens += new
            attention += self.prefill(new, cached)
            outside = outside or not self.prefill.covers(new, cached)
        if decodes:
            law = self._laws.get(decodes) or self._law(decodes)
            attention += law.attention(kv_tokens)
            outside = outside or "attention" in law.outside or not law.attention.covers(kv_tokens)
        if outside:
            self.extrapolated["attention"] += 1
        self.extrapolated.update(self._outside(tokens, sequences))
        fixed = self.dense(tokens) + self.per_sequence(sequences) + self.host(sequences, tokens - sequences)
        return fixed + attention

    def decode_run(self, decodes: int, kv_tokens: int, steps: int) -> np.ndarray:
        """Seconds of `steps` consecutive decode steps, (steps,): each of the sequences' contexts grows by one a step.

        Bit for bit what `step((), decodes, kv_tokens + i · decodes)` gives.
        """
        law = self._laws.get(decodes) or self._law(decodes)
        contexts = np.arange(kv_tokens, kv_tokens + steps * decodes, decodes, dtype=np.float64)
        if law.outside or kv_tokens < law.attention.low or contexts[-1] > law.attention.high:
            self._count(law, contexts)
        return law.fixed + law.attention.many(contexts)

    def host(self, sequences: int, extra_tokens: int) -> float:
        """Seconds a step takes beyond its kernels; `extra_tokens` are those beyond one a sequence.

        Outside its grid it keeps the border's value: there is no law in bytes or FLOPs to go on by.
        """
        rows = self.overhead
        row = min(max(sequences, rows.keys[0]), rows.keys[-1])
        low, high = rows.cell(row)
        return rows(row, min(extra_tokens, rows.curves[low].high, rows.curves[high].high))

    def _law(self, decodes: int) -> _DecodeLaw:
        curve = self.decode.at(decodes)
        outside = self._outside(decodes, decodes)
        if not self.decode.keys[0] <= decodes <= self.decode.keys[-1]:
            outside.append("attention")
        law = _DecodeLaw(
            self.dense(decodes) + self.per_sequence(decodes) + self.host(decodes, 0),
            Curve([decodes * kv for kv in curve.xs], curve.ys),
            tuple(outside),
        )
        self._laws[decodes] = law
        return law

    def _outside(self, tokens: int, sequences: int) -> list[str]:
        outside = []
        if not self.dense.low <= tokens <= self.dense.high:
            outside.append("dense")
        if not self.per_sequence.low <= sequences <= self.per_sequence.high:
            outside.append("per_sequence")
        return outside

    def _count(self, law: _DecodeLaw, contexts: np.ndarray) -> None:
        for kernel_class in law.outside:
            self.extrapolated[kernel_class] += len(contexts)
        if "attention" not in law.outside:
            beyond = np.count_nonzero((contexts < law.attention.low) | (contexts > law.attention.high))
            self.extrapolated.update({"attention": int(beyond)} if beyond else {})

    def _overhead_rows(self, profile: Profile) -> Surface:
        """Rows by sequences, over the tokens beyond one a sequence."""
        if "overhead" not in profile.tables:
            note = f"profile {profile.name} does not hold it; a step takes its kernels' time and no more"
            self.assumptions.append(Assumption("engine.host_overhead", 0.0, "s", "assumed", note))
            return Surface({1: Curve([0], [0.0])})
        table = profile.table("overhead").with_columns(extra=pl.col("tokens") - pl.col("sequences"))
        return _rows(table, "sequences", "extra", 1)


def prefill_work(new: float, cached: float) -> float:
    """Query-key pairs of a causal prefill, to which its attention FLOPs are proportional."""
    return new * cached + new * (new + 1) / 2


def _check_match(profile: Profile, model: ModelShape, tp: int) -> None:
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


def _provenance(profile: Profile) -> Assumption:
    source = profile.provenance.source
    if source not in ("measured", "imported", "datasheet"):
        raise UserError(
            f"profile {profile.name}: provenance.source is {source!r}; expected measured, imported or datasheet"
        )
    return Assumption("profile", profile.name, "", source, profile.provenance.note)  # type: ignore[arg-type]


def _summed(profile: Profile, model: ModelShape, kernel_class: str, axis: str) -> Curve:
    """One curve for a whole step: every layer of the class times its calls."""
    table = profile.table(kernel_class)
    curves = []
    for call in model.calls():
        if call.kernel_class == "moe":
            profile.table("moe")  # no profile holds it yet, so this says which profile and model
        if call.kernel_class != kernel_class:
            continue
        rows = table.filter(pl.col("layer") == call.layer).sort(axis)
        if rows.is_empty():
            raise UserError(
                f"profile {profile.name}: kernel class {kernel_class} has no layer {call.layer}, "
                f"which {model.name} runs"
            )
        curves.append((call.calls, Curve(rows[axis].to_list(), rows["seconds"].to_list())))
    return add(curves)


def _attention_rows(profile: Profile, table: pl.DataFrame, keys: tuple[str, str], calls: int) -> Surface:
    if table.is_empty():
        raise UserError(f"profile {profile.name}: kernel class attention has no row that varies {' and '.join(keys)}")
    return _rows(table, *keys, calls)


def _rows(table: pl.DataFrame, row: str, axis: str, calls: int) -> Surface:
    curves: dict[float, Curve] = {}
    for (key,), part in table.sort(row, axis).group_by(row, maintain_order=True):
        curves[key] = Curve(part[axis].to_list(), [calls * seconds for seconds in part["seconds"]])
    return Surface(curves)
