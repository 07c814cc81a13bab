"""FLOPs and bytes that a layer cannot do without: the two axes of the roofline (Williams et al., 2009)."""

from __future__ import annotations

from typing import NamedTuple

from calibrate.model import ModelShape


class Work(NamedTuple):
    """Of one call: floating-point operations, and bytes moved to or from memory if each is moved once."""

    flops: float
    bytes: float

    def seconds(self, flops_per_second: float, bytes_per_second: float) -> float:
        """The roofline: whichever of the two takes longer, the other fully hidden behind it."""
        return max(self.flops / flops_per_second, self.bytes / bytes_per_second)


def layer_work(rank: ModelShape, layer: str, rows: int) -> Work:
    """One call of a token-wise or per-sequence layer of one rank's shape on `rows` tokens (or sequences).

    A product of [rows, inputs] and [inputs, outputs] is 2 · rows · inputs · outputs FLOPs; the other layers are
    counted by the bytes they read and write.
    """
    b, hidden = rank.dtype_bytes, rank.hidden
    for linear in rank.linears():
        if linear.name == layer:
            inputs, outputs = linear.inputs, linear.outputs
            return Work(2.0 * rows * inputs * outputs, b * (inputs * outputs + rows * (inputs + outputs)))
    rotated = (rank.heads + rank.kv_heads) * rank.head_dim
    features_moved = {
        "embedding": 2 * hidden,
        "layernorm": 4 * hidden,  # x and residual read, sum and norm written
        "final_layernorm": 4 * hidden,
        "qk_norm": 2 * rotated,
        "rotary_emb": 2 * rotated,
        "act_fn": 3 * rank.intermediate,
        "sampler": rank.vocab,
    }
    return Work(0.0, float(b * rows * features_moved[layer]))


def prefill_work(rank: ModelShape, chunk: int, cached: int) -> Work:
    """Causal attention of `chunk` new tokens behind `cached`: two products of 2 · head_dim FLOPs a query-key pair."""
    pairs = chunk * cached + chunk * (chunk + 1) / 2
    kv = 2 * rank.kv_heads * rank.head_dim * (cached + chunk)
    queries = 2 * rank.heads * rank.head_dim * chunk
    return Work(4.0 * rank.heads * rank.head_dim * pairs, float(rank.dtype_bytes * (kv + queries)))


def decode_work(rank: ModelShape, sequences: int, cached: int) -> Work:
    """Attention of one new token in each of `sequences`, each behind `cached`."""
    one = prefill_work(rank, 1, cached)
    return Work(sequences * one.flops, sequences * one.bytes)
