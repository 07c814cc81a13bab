"""Generation that computes the whole sequence for every token."""

from __future__ import annotations

import numpy as np
import polars as pl
from gallery import Exhibit, lines
from symptom import Row, simulated, symptom

from sim.results.folder import Run

WITH_CACHE = {"engine.kv_cache": True, "engine.kv_blocks": 1000}
SEQUENCES = 8
LENGTHS = (64, 128, 256, 512, 1024)

TEXT = f"""\
{SEQUENCES} sequences decode together, the most whose first ten tokens take less than 20 ms each. Without a cache a
step computes all tokens so far: flat while reading the weights takes longer than computing them, then in proportion
to the length, and faster where attention joins in. From token 100 to 512 the reference grows 2.8 times; the work,
prompt included, grows 4.6 times. A concave curve is not what recomputing alone gives: sequences that end and leave
the batch would.
"""


def run() -> Exhibit:
    without, cached = times_along("no_cache", {}), times_along("no_cache", WITH_CACHE)
    at = [1, 10, 100, 512]
    rows = [
        Row(f"token {token}", reference, f"{1e3 * without[token - 1]:.1f} ms", f"{1e3 * cached[token - 1]:.1f} ms")
        for token, reference in zip(at, ("< 20 ms", "< 20 ms", "65 ms", "180 ms"), strict=True)
    ]
    work = {
        name: [computed(simulated("no_cache", {"trace.synth.lengths.output.value": n} | settings)) for n in LENGTHS]
        for name, settings in (("without", {}), ("with", WITH_CACHE))
    }
    order = {name: float(np.polyfit(np.log(LENGTHS[-3:]), np.log(tokens[-3:]), 1)[0]) for name, tokens in work.items()}
    rows.append(
        Row("tokens computed for n of output", "O(n) → O(n²)", f"n^{order['without']:.2f} without a cache",
            f"n^{order['with']:.2f} with one")
    )  # fmt: skip
    tokens = list(range(1, len(without) + 1))
    figure = lines(
        {
            "without a KV cache": (tokens, [1e3 * t for t in without]),
            "with one": (tokens, [1e3 * t for t in cached]),
            "reference": ([10, 100, 512], [20, 65, 180]),
        },
        "token of the output",
        "ms",
    )
    figure.data[0].mode = figure.data[1].mode = "lines"
    return symptom(
        "Latency per token grows along the output; no KV cache",
        TEXT,
        rows,
        [(figure, "Seconds of each step of the batch, by the token that it generates.")],
    )


def times_along(scenario: str, settings: dict[str, object]) -> list[float]:
    """Seconds of the steps in which all sequences run, in order: token by token."""
    steps = simulated(scenario, settings).steps
    together = steps.filter(pl.col("prefill_seqs") + pl.col("decode_seqs") == SEQUENCES)
    seconds = (together["end"] - together["start"]) / together["steps"]
    growth = np.repeat(seconds.to_numpy(), together["steps"].to_numpy())  # a leap's steps at their mean
    return growth.tolist()


def computed(run: Run) -> int:
    """Tokens that went through the model."""
    steps = run.steps
    return int(steps["prefill_tokens"].sum()) + int((steps["decode_seqs"] * steps["steps"]).sum())
