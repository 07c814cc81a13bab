"""Seconds of a pruned engine's step: the same kernels, of those layers that run, and of as many tokens as run them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from math import ceil
from typing import Any, NamedTuple

import polars as pl

from calibrate.attention_law import AttentionLaw
from calibrate.curve import Curve, add
from calibrate.exchange import Exchange
from calibrate.latency import StepLatency
from calibrate.layer_curves import layer_curve, summed
from calibrate.layer_use import LayerUse
from calibrate.model import LayerCalls, ModelShape
from calibrate.profile import Profile
from calibrate.profile_sources import source_of
from calibrate.pruned_attention import PrunedAttention
from calibrate.pruned_kernels import PrunedKernels
from calibrate.pruning import stored_bytes
from calibrate.skew import Skew
from ground.assumption import Assumption
from ground.errors import UserError

_MLP = ("gate_up_proj", "act_fn", "down_proj")
_SCORE_BYTES = 8  # a cached token's attention so far, a KV head: read and written as float32


class Partial(NamedTuple):
    """A kernel that is called `calls` times a step on a share of the decoding tokens and one of the others."""

    calls: int
    seconds: Callable[[float], float]
    decodes: float
    prompts: float


class PrunedLatency(StepLatency):
    """A `StepLatency` of which the layers run that `use` says.

    Where all but n layers are left out it is that of the model of n layers, bit for bit. A kernel that a share of the
    tokens runs is looked up at so many of them, the mean of what it meets: in truth their number differs from step to
    step. Below one token it is one call in as many steps.
    """

    def __init__(self, profile: Profile, model: ModelShape, *, use: LayerUse, **settings: Any) -> None:
        """The other arguments are those of `StepLatency`.

        Raises:
            UserError: as that; or tokens decide what they run and steps replay captured graphs, or a CPU's profile did
                not measure the attention that is needed.
        """
        self.use = use
        super().__init__(profile, model, **settings)
        if use.pruning.by_input and self._graph_sizes:
            raise UserError(
                "engine.pruning: tokens decide what they run, and a captured graph runs the same for all; expected "
                "engine.cudagraph_capture_sizes []"
            )
        self._kernels = PrunedKernels(profile, model.shard(self.parallelism.tensor))
        self.dense = self._whole(profile)
        self._partials = self._partial()
        if not use.pruning.mlps:
            self.experts = None
        self.exchange = _PrunedExchange(self.exchange, use)
        law: Any = self._attention()
        self.attention, self.prefill, self.decode = law, law.prefill, law.decode
        self._varying: dict[tuple[int, int], float] = {}
        self.assumptions += [*self._kernels.assumptions, *self._stated()]

    @property
    def varies(self) -> bool:
        """Whether some tokens of a step run token-wise kernels that others do not."""
        return bool(self._partials)

    def varying(self, prefill_tokens: int, decodes: int) -> float:
        """Seconds of those token-wise kernels that not all tokens of a step run."""
        known = self._varying.get((prefill_tokens, decodes))
        if known is None:
            known = 0.0
            for kernel in self._partials:
                tokens = prefill_tokens * kernel.prompts + decodes * kernel.decodes
                if tokens:
                    known += kernel.calls * min(1.0, tokens) * kernel.seconds(max(1.0, tokens))
            self._varying[prefill_tokens, decodes] = known
        return known

    def _tokenwise(self, padded: int, sequences: int, decodes: int = 0) -> float:
        seconds = super()._tokenwise(padded, sequences, decodes)
        return seconds + self.varying(padded - decodes, decodes) if self._partials else seconds

    def _expert_layers(self) -> int:
        return len(self.use.pruning.mlps)

    def _skew(self, profile: Profile, wanted: bool) -> Skew | None:
        pruning = self.use.pruning
        if pruning.exits or self.use.most is not None or pruning.kv_dtype is not None:
            note = (
                "unequal contexts were not measured with such pruning: sequences are taken to be as long as their mean"
            )
            self.assumptions.append(Assumption("engine.skew", "none", "", "assumed", note))
            return None
        return super()._skew(profile, wanted)

    # Compiling.

    def _whole(self, profile: Profile) -> Curve:
        """The token-wise kernels that all tokens run."""
        model, use = self.model, self.use
        runs, keeps, mlps = _kinds(use)
        counts = {
            "layernorm": len(use.pruning.kept) + mlps,
            "o_proj": runs,
            **dict.fromkeys(("qkv_proj", "qk_norm", "rotary_emb"), keeps),
            **dict.fromkeys(_MLP, mlps),
        }
        calls = [LayerCalls(layer, kind, counts.get(layer, number)) for layer, kind, number in model.calls()]
        more = {"q_proj": runs - keeps, "rotary_q": runs - keeps, "q_norm": (runs - keeps) * model.qk_norm}
        left = len(use.pruning.keeping) - keeps  # layers that some have left: the keys and values are those of all
        more |= {"kv_proj": left, "rotary_kv": left, "k_norm": left * model.qk_norm}
        more["pack_kv"] = len(use.pruning.keeping) if use.pruning.kv_dtype is not None else 0
        more["similarity"] = mlps if use.pruning.similarity is not None else 0
        curves = [(number, self._kernels.curve(name)) for name, number in more.items() if number]
        whole = summed(profile, [call for call in calls if call.calls], "dense", "tokens")
        return add([(1, whole), *curves]) if curves else whole

    def _partial(self) -> list[Partial]:
        use, kernels = self.use, self._kernels

        def prompts(share: float) -> float:
            return 1.0 if use.prompts_whole else share

        found: Counter[tuple[str, float]] = Counter()
        for layer in use.pruning.kept:
            # A share of nought is of those who decode: prompts may run the layer all the same.
            attention, mlp = use.attention[layer], use.mlp[layer] if layer in use.pruning.mlps else 1.0
            if attention < 1.0:
                found.update((name, attention) for name in ("q_proj", "rotary_q", "o_proj", "gather"))
                if self.model.qk_norm:
                    found["q_norm", attention] += 1
            if mlp < 1.0:
                found.update((name, mlp) for name in ("layernorm", *_MLP))
                if use.pruning.similarity is not None:
                    found.update((name, mlp) for name in ("gather", "similarity"))
        partials = [
            Partial(calls, kernels.curve(name), share, prompts(share)) for (name, share), calls in found.items()
        ]
        shares = [use.attention[layer] for layer in use.pruning.kept] + [use.mlp[layer] for layer in use.pruning.mlps]
        reductions = Counter(share for share in shares if share < 1.0)
        partials += [
            Partial(calls, lambda tokens: self.exchange.all_reduce(ceil(tokens)), share, prompts(share))
            for share, calls in reductions.items()
            if self.parallelism.tensor > 1
        ]
        for layer in use.pruning.exits:
            for curve in (
                kernels.curve("final_layernorm"),
                layer_curve(self.profile, "per_sequence", "lm_head", "sequences"),
                kernels.curve("confidence"),
            ):
                partials.append(Partial(1, curve, use.attention[layer], 0.0))
        return partials

    def _attention(self) -> AttentionLaw | PrunedAttention:
        use, pruning, profile = self.use, self.use.pruning, self.profile
        table, bytes_read = self._attention_table()
        layers = Counter(use.attention[layer] for layer in pruning.kept)
        groups = [(AttentionLaw(profile, count, self.skew, table), share) for share, count in layers.items()]
        if list(layers) == [1.0] and use.most is None and bytes_read == 1.0:
            return groups[0][0]
        return PrunedAttention(groups, most=use.most, slides=pruning.window is not None, bytes_read=bytes_read)

    def _attention_table(self) -> tuple[pl.DataFrame | None, float]:
        """The kernel's own table, None for the profile's usual one; and how many bytes of a cached token it reads."""
        pruning, profile, model = self.use.pruning, self.profile, self.model
        kind = "heavy_hitters" if pruning.budget is not None else pruning.kv_dtype
        if kind is None:
            return None, 1.0
        measured = profile.tables.get("pruned_attention")
        if measured is not None and kind in measured["kind"].to_list():
            note = "attention of what is kept, as measured"
            self.assumptions.append(Assumption(f"kernel.attention.{kind}", "measured", "", source_of(profile), note))
            return measured.filter(pl.col("kind") == kind), 1.0
        if profile.measured_on_cpu:
            raise UserError(
                f"profile {profile.name}: no attention of {kind} was measured, and a CPU's is not a matter of bytes; "
                "expected a profile of simctl calibrate run --pruning"
            )
        vector = model.head_dim * model.dtype_bytes
        if pruning.kv_dtype is not None:
            ratio = stored_bytes(pruning.kv_dtype, model.head_dim) / vector
            note = "not measured: a decode takes as long as one that reads as many bytes, and a prompt as unpruned"
        else:
            ratio = 1.0 + _SCORE_BYTES / (2 * vector)
            note = "not measured: a decode takes as long as one that reads as many bytes, with every token's score"
        self.assumptions.append(Assumption(f"kernel.attention.{kind}", f"{ratio:.4g} × bytes", "", "assumed", note))
        return None, ratio

    def _stated(self) -> list[Assumption]:
        use, pruning = self.use, self.use.pruning
        text = f"{len(pruning.kept)} of {pruning.layers} layers, {len(pruning.mlps)} MLPs, KV of {len(pruning.keeping)}"
        stated = [Assumption("engine.pruning", text, "", "user", "what of the model runs, of all tokens or of some")]
        if pruning.by_input:
            note = "every step has the mean share of tokens in each layer; their number in truth differs by step"
            stated.append(Assumption("engine.pruning.shares", "mean", "", "assumed", note))
        if use.most is not None:
            note = "a decode reads all that is held, in whole blocks; a prompt takes as one of as many query-key pairs"
            stated.append(Assumption("engine.pruning.most_tokens", use.most, "tokens", "assumed", note))
        return stated


def _kinds(use: LayerUse) -> tuple[int, int, int]:
    """How many layers all tokens attend in, of those how many keep keys and values, and how many MLPs all run."""
    runs = [layer for layer in use.pruning.kept if use.attention[layer] == 1.0]
    keeping = set(use.pruning.keeping)
    return len(runs), sum(layer in keeping for layer in runs), sum(share == 1.0 for share in use.mlp)


class _PrunedExchange(Exchange):
    """What is exchanged after the attentions and MLPs that all tokens run."""

    def __init__(self, plain: Exchange, use: LayerUse) -> None:
        super().__init__(plain.model, plain.parallelism, plain.collectives)
        runs, _, mlps = _kinds(use)
        self._reductions = 1 + runs + mlps

    @property
    def reductions(self) -> int:
        return self._reductions
