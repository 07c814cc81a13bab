"""Profiles of a device whose law is known and linear, so that a table of few points knows it exactly.

Unlike that of `test_latency` it serves prefills and decodes in one kernel, has experts and tensor-parallel ranks.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import polars as pl

from calibrate.attention_law import prefill_work
from calibrate.batch import Batch
from calibrate.experts import activated_experts
from calibrate.model import ModelShape, load_model
from calibrate.profile import Profile, Provenance

MODEL = load_model("tiny-llama")
EXPERTS = replace(MODEL, name="tiny-experts", experts=8, experts_per_token=2, moe_intermediate=64)

TOKENS, SEQUENCES, CONTEXTS = [1, 7, 64, 1024], [1, 5, 128], [0, 100, 4000]
CHUNKS, PREFIXES, DECODES = [16, 64, 512], [0, 1000], [1, 4, 64]
MOST_TOKENS = 1024


def dense(tokens: float) -> float:
    return 2e-6 + 3e-8 * tokens


def per_sequence(sequences: float) -> float:
    return 5e-6 + 1e-6 * sequences


def prefill(chunk: float, prefix: float) -> float:
    return 4e-6 + 6e-10 * prefill_work(chunk, prefix)


def decode(sequences: float, context: float) -> float:
    return 3e-6 + 1e-7 * sequences + 2e-9 * sequences * context


def beside(chunk: float, prefix: float, sequences: float, context: float) -> float:
    """What decodes add to a prefill: linear in each, alone."""
    return sequences * (1e-7 + 1.5e-9 * context) * (1 + 1e-3 * chunk) * (1 + 1e-4 * prefix)


def experts(tokens: float, activated: float) -> float:
    return 1e-5 + 2e-7 * tokens + 3e-6 * activated


def host(sequences: float, tokens: float) -> float:
    return 1e-4 + 2e-6 * sequences + 1e-8 * tokens


def attention(prefills: Sequence[tuple[int, int]], decodes: int, kv_tokens: int) -> float:
    """Of one layer: one kernel serves all of a step."""
    if not prefills:
        return decode(decodes, kv_tokens / decodes) if decodes else 0.0
    launch = prefill(CHUNKS[0], 0)
    seconds = launch + sum(prefill(*one) - launch for one in prefills)
    return seconds + (beside(*max(prefills), decodes, kv_tokens / decodes) if decodes else 0.0)


def calls(model: ModelShape, kernel_class: str) -> int:
    return sum(call.calls for call in model.calls() if call.kernel_class == kernel_class)


def own_kernels(model: ModelShape, batch: Batch, tokens: float | None = None) -> float:
    """Of one engine, without experts and exchange; its token-wise kernels compute `tokens` where a graph pads them."""
    computed = max(1, batch.decodes + sum(new for new, _ in batch.prefills))
    sequences = max(1, batch.decodes + len(batch.prefills))
    return (
        calls(model, "dense") * dense(tokens or computed)
        + calls(model, "per_sequence") * per_sequence(sequences)
        + model.layers * attention(batch.prefills, batch.decodes, batch.kv_tokens)
    )


def experts_seconds(model: ModelShape, tokens: float, ranks: int) -> float:
    reached = activated_experts(model.experts / ranks, model.experts_per_token / model.experts, int(tokens))
    return model.layers * experts(tokens / ranks, reached)


def make_profile(model: ModelShape = MODEL, tp: int = 1, *, mixed: bool = True, overhead: bool = False) -> Profile:
    """`mixed`: with batches of a prefill beside decodes; `overhead`: with the host's share of a step."""
    names = {
        kind: [call.layer for call in model.calls() if call.kernel_class == kind] for kind in ("dense", "per_sequence")
    }
    rows = [(chunk, prefix, 0, 0, prefill(chunk, prefix)) for chunk in CHUNKS for prefix in PREFIXES]
    rows += [(0, 0, n, kv, decode(n, kv)) for n in DECODES for kv in CONTEXTS]
    if mixed:
        rows += [
            (chunk, prefix, n, kv, prefill(chunk, prefix) + beside(chunk, prefix, n, kv))
            for chunk in CHUNKS
            for prefix in PREFIXES
            for n in DECODES
            for kv in CONTEXTS
        ]
    columns = ["prefill_chunk", "kv_prefill", "n_decode", "kv_decode", "seconds"]
    tables: dict[str, Any] = {
        "dense": [{"layer": layer, "tokens": n, "seconds": dense(n)} for layer in names["dense"] for n in TOKENS],
        "per_sequence": [
            {"layer": layer, "sequences": n, "seconds": per_sequence(n)}
            for layer in names["per_sequence"]
            for n in SEQUENCES
        ],
        "attention": [dict(zip(columns, row, strict=True)) for row in rows],
    }
    if model.experts:
        tables["moe"] = [
            {"tokens": n, "activated_experts": reached, "seconds": experts(n, reached)}
            for n in (1, 64, 2048)
            for reached in (1, 4, model.experts)
        ]
    if overhead:
        tables["overhead"] = [
            {"sequences": s, "tokens": s + extra, "seconds": host(s, s + extra)}
            for s in (1, 128)
            for extra in (0, 1024)
        ]
    return Profile(
        name="known",
        device="nobody's",
        model=model,
        tp=tp,
        dtype="bfloat16",
        provenance=Provenance("measured", "made by the test", "none"),
        tables={name: pl.DataFrame(table) for name, table in tables.items()},
    )
