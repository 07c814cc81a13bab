"""Kernels that only a pruned model runs, by name, and what each takes where a profile did not measure it.

A profile measured with `simctl calibrate run --pruning` holds them in its table `pruned`. Elsewhere one that was
measured stands for each, by the bytes and FLOPs of the two, and the run says so.
"""

from __future__ import annotations

from calibrate.curve import Curve
from calibrate.layer_curves import layer_curve
from calibrate.model import ModelShape
from calibrate.profile import Profile
from calibrate.profile_sources import source_of
from ground.assumption import Assumption


class PrunedKernels:
    """Curves over tokens, or over sequences for `confidence`, of one call; `assumptions` says where each is from."""

    def __init__(self, profile: Profile, model: ModelShape) -> None:
        """`model`: the rank's share of the model."""
        self.assumptions: list[Assumption] = []
        self._profile = profile
        self._known: dict[str, Curve] = {}
        queries, keys = model.heads, 2 * model.kv_heads
        # Kernel → (kernel class and layer that stand for it, their share, why).
        products = "its share of the FLOPs and weight bytes of qkv_proj"
        rotation = "its share of the bytes of rotary_emb"
        moved = "no more bytes than a layernorm moves"
        self._stand_ins = {
            "q_proj": ("dense", "qkv_proj", queries / (queries + keys), products),
            "kv_proj": ("dense", "qkv_proj", keys / (queries + keys), products),
            "q_norm": ("dense", "qk_norm", queries / (queries + keys / 2), "its share of the bytes of qk_norm"),
            "k_norm": ("dense", "qk_norm", keys / (2 * queries + keys), "its share of the bytes of qk_norm"),
            "rotary_q": ("dense", "rotary_emb", queries / (queries + keys / 2), rotation),
            "rotary_kv": ("dense", "rotary_emb", 1.0, "rotary_emb whole, which writes keys and values as well"),
            "gather": ("dense", "layernorm", 1.0, moved),
            "similarity": ("dense", "layernorm", 1.0, moved),
            "pack_kv": ("dense", "rotary_emb", 0.0, "done by the kernel that writes keys and values, in fewer bytes"),
            "confidence": ("per_sequence", "sampler", 1.0, "as sampling, which reads the same logits"),
        }

    def curve(self, name: str) -> Curve:
        """One call of a kernel of the table above, or of one that every model runs ("dense" alone).

        Raises:
            UserError: the profile does not even hold what stands for it.
        """
        if name not in self._known:
            self._known[name] = self._find(name)
        return self._known[name]

    def _find(self, name: str) -> Curve:
        profile = self._profile
        if name not in self._stand_ins:
            return layer_curve(profile, "dense", name, "tokens")
        table = profile.tables.get("pruned")
        if table is not None and name in table["layer"].to_list():
            note = "a kernel that pruning needs, as measured"
            self.assumptions.append(Assumption(f"kernel.{name}", "measured", "", source_of(profile), note))
            return layer_curve(profile, "pruned", name, "tokens")
        kernel_class, layer, share, why = self._stand_ins[name]
        value = f"{share:.3g} × {layer}"
        self.assumptions.append(Assumption(f"kernel.{name}", value, "", "assumed", f"not measured: {why}"))
        axis = "tokens" if kernel_class == "dense" else "sequences"
        return layer_curve(profile, kernel_class, layer, axis).times(share)
