"""How fast a lone block of decode attention reads, from steps that an engine ran.

`python benchmarks/lone_block_rate.py [FOLDER]`. Tables of equal contexts do not tell, as there the memory is the bound
(`calibrate.paged_waves`). Of every decode step of a sitting the contexts are known, and what it took beyond the
prediction for their mean. The rate is the one that explains most of it; what each graph size took beyond it whatever
the contexts were is left free.
"""

from __future__ import annotations

import json
import sys
from bisect import bisect_left
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

from calibrate.latency import StepLatency  # noqa: E402
from calibrate.paged_waves import PagedWaves  # noqa: E402
from calibrate.profile import Profile  # noqa: E402

FOLDER = ROOT / "validate" / "results" / "h100-sxm-80gb" / "first-sitting"
NANOSECONDS = (10, 12, 14, 16, 18, 19, 20, 21, 22, 23, 24, 26, 30)  # a token
_SIZES = [1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128]
_FEWEST, _MOST = 9, 48  # sequences: fewer do not show it, and of more there are few steps
_OUTLIER = 0.3e-3  # seconds; farther off is the host's doing
_EVERY = 3  # one step in so many


def decode_steps(requests: pl.DataFrame, steps: pl.DataFrame) -> Iterator[tuple[float, int, np.ndarray]]:
    """Seconds, cached tokens and contexts of every step of one replay that only decodes."""
    first, finish, prompt = requests.select("first_token", "finish", "prompt_tokens").to_numpy().T
    generated = np.zeros(len(first))
    columns = ("start", "end", "prefill_seqs", "decode_seqs", "kv_tokens")
    for start, end, prefills, decodes, kv_tokens in steps.select(columns).iter_rows():
        decoding = (first <= start + 1e-9) & (finish > start + 1e-9)
        contexts = (prompt + generated)[decoding]
        generated[decoding] += 1
        if decodes and not prefills and len(contexts) == decodes and round(contexts.sum()) == kv_tokens:
            yield end - start, kv_tokens, contexts


def spreads(folder: Path) -> dict[float, float]:
    """Nanoseconds a token → the spread of what is left unexplained, in seconds."""
    profile = Profile.load(folder / "profile")
    times = StepLatency(profile, profile.shape, graph_sizes=_SIZES, graphs_decode_only=True)
    requests, steps = (pl.read_parquet(folder / f"{name}.parquet") for name in ("requests", "steps"))
    found = []
    for (load, policy), of_run in steps.group_by("load", "policy", maintain_order=True):
        own = requests.filter((pl.col("load") == load) & (pl.col("policy") == policy))
        if own["preemptions"].sum():
            continue  # a request that begins anew has other contexts
        for seconds, kv_tokens, contexts in decode_steps(own, of_run):
            if _FEWEST <= len(contexts) <= _MOST:
                found.append((seconds - times.step([], len(contexts), kv_tokens), contexts))
    found = found[::_EVERY]
    size = np.array([bisect_left(_SIZES, len(contexts)) for _, contexts in found])
    beyond = np.array([seconds for seconds, _ in found])
    result = {}
    for nanoseconds in NANOSECONDS:
        waves = PagedWaves.of(profile.table("attention"), profile.shape.kv_heads, 132, 1e9 / nanoseconds)
        attention = [times.attention_of_decodes(len(contexts))(contexts.sum()) for _, contexts in found]
        left = beyond - np.array([waves.excess(contexts) for _, contexts in found]) * np.array(attention)
        for group in np.unique(size):
            left[size == group] -= np.median(left[size == group])
        result[float(nanoseconds)] = float(np.sqrt(np.mean(np.minimum(np.abs(left), _OUTLIER) ** 2)))
    return result


if __name__ == "__main__":
    spread = spreads(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
    print(json.dumps({f"{at:g} ns a token": f"{1e6 * left:.1f} us" for at, left in spread.items()}, indent=2))
    best = min(spread, key=lambda at: spread[at])
    print(f"lone_block_rate: {1e9 / best:.4g} tokens of one head a second ({best:g} ns a token)")
