"""Random workloads and settings for the engine's property tests, and step times with a simple law."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from hypothesis import strategies as st

from calibrate.curve import Curve
from calibrate.decode_law import DecodeLaw
from sim.engine.config import EngineConfig

# A scenario without its engine: thirty requests within a second, more than a small KV pool holds at once.
BURST: dict[str, Any] = {
    "model": "Llama-3.1-8B",
    "profile": "datasheet:h100-sxm-80gb",
    "trace": {
        "synth": {
            "requests": 30,
            "arrivals": {"process": "poisson", "rate": 50.0},
            "lengths": {
                "prompt": {"distribution": "uniform", "low": 300, "high": 600},
                "output": {"distribution": "uniform", "low": 200, "high": 300},
            },
        }
    },
}


@dataclass(frozen=True)
class LinearStepTimes:
    """Seconds = base + per_token · tokens + per_kv · cached tokens: what a memory-bound engine roughly does."""

    base: float = 0.01
    per_token: float = 0.000_1
    per_kv: float = 0.000_001_7
    asks_spread: bool = False
    has_law: bool = True  # or each step's time is given one by one
    kinks: Sequence[float] = (37, 64, 300)  # cached tokens at which the law enters another cell, without a bend

    def step(self, prefills: Sequence[tuple[int, int]], decodes: int, kv_tokens: int, spread: object = None) -> float:
        if not prefills:
            return float(self.decode_run(decodes, kv_tokens, 1)[0])
        tokens = decodes + sum(new for new, _ in prefills)
        cached = kv_tokens + sum(start for _, start in prefills)
        return self.base + self.per_token * tokens + self.per_kv * cached

    def decode_law(self, decodes: int) -> DecodeLaw | None:
        if not self.has_law:
            return None
        kv = [0.0, *(float(x) for x in self.kinks), 1e6]
        return DecodeLaw(decodes, self.base + self.per_token * decodes, Curve(kv, [self.per_kv * x for x in kv]))

    def decode_run(self, decodes: int, kv_tokens: int, steps: int, spread: object = None) -> np.ndarray:
        kv = kv_tokens + decodes * np.arange(steps)
        return self.base + self.per_token * decodes + self.per_kv * kv

    def host(self, sequences: int, extra_tokens: int) -> float:
        return 0.0

    def swap(self, out: int, into: int) -> float:
        return 0.000_3 * out + 0.000_2 * into


@st.composite
def configs(draw: st.DrawFn, block_size: int | None = None) -> EngineConfig:
    size = block_size or draw(st.sampled_from([1, 2, 4, 16]))
    seqs = draw(st.integers(1, 8))
    return EngineConfig(
        kv_blocks=-(-96 // size) + draw(st.integers(0, 40)),
        block_size=size,
        max_num_seqs=seqs,
        max_num_batched_tokens=draw(st.integers(seqs, seqs + 48)),
        long_prefill_token_threshold=draw(st.none() | st.integers(1, 24)),
        enable_prefix_caching=draw(st.booleans()),
        async_scheduling=draw(st.booleans()),
        scheduler_reserve_full_isl=draw(st.booleans()),
        scheduling_policy=draw(st.sampled_from(["fcfs", "priority"])),
        swap_blocks=draw(st.sampled_from([0, 0, 3, 1000])),
    )


@st.composite
def traces(draw: st.DrawFn, id_tokens: int = 4) -> pl.DataFrame:
    """Up to 30 requests of at most 96 tokens, arriving together or apart, some with shared prefixes."""
    count = draw(st.integers(1, 30))
    gaps = draw(st.lists(st.sampled_from([0.0, 0.0, 0.003, 0.02, 0.05, 0.4]), min_size=count, max_size=count))
    prompts = draw(st.lists(st.integers(1, 60), min_size=count, max_size=count))
    outputs = draw(st.lists(st.integers(1, 36), min_size=count, max_size=count))
    groups = draw(st.lists(st.integers(0, 3), min_size=count, max_size=count))
    shared = draw(st.lists(st.integers(0, 60), min_size=count, max_size=count))
    priorities = draw(st.lists(st.integers(0, 2), min_size=count, max_size=count))
    ids = []
    for request, (prompt, group, common) in enumerate(zip(prompts, groups, shared, strict=True)):
        blocks = prompt // id_tokens
        common_blocks = min(common, prompt) // id_tokens
        ids.append(
            [1_000 * (group + 1) + i for i in range(common_blocks)]
            + [1_000_000 * (request + 1) + i for i in range(common_blocks, blocks)]
        )
    return pl.DataFrame(
        {
            "request_id": range(count),
            "arrival": np.cumsum(gaps).tolist(),
            "prompt_tokens": prompts,
            "output_tokens": outputs,
            "prefix_ids": ids,
            "prefix_block_tokens": [id_tokens] * count,
            "priority": priorities,
        },
        schema_overrides={"prefix_ids": pl.List(pl.Int64)},
    )


@st.composite
def computed_together(draw: st.DrawFn) -> tuple[EngineConfig, pl.DataFrame]:
    """A long answer, beside which the same prompt is computed twice or more at the same time, in small chunks, so that
    who has which part of it in the prefix cache is not in the order of the prompt. When few blocks are free, longer
    prompts come that begin with it."""
    config = EngineConfig(
        kv_blocks=draw(st.integers(23, 30)),
        block_size=4,
        max_num_seqs=draw(st.integers(4, 6)),
        max_num_batched_tokens=draw(st.integers(20, 28)),
        long_prefill_token_threshold=draw(st.sampled_from([12, 16])),
        async_scheduling=draw(st.booleans()),
    )
    first = draw(st.lists(st.tuples(st.integers(33, 36), st.integers(2, 5)), min_size=2, max_size=3))
    late = draw(st.lists(st.tuples(st.integers(40, 64), st.integers(1, 8)), min_size=1, max_size=3))
    tokens = [(4, 86), *first, *late]  # of prompt and output
    few_left = 0.0102 * 4 * (config.kv_blocks - 12)  # seconds until the long answer has left about twelve blocks
    gaps = draw(st.lists(st.sampled_from([0.0, 0.02, 0.04, 0.06]), min_size=len(late), max_size=len(late)))
    arrivals = [0.0] * (1 + len(first)) + (few_left + np.cumsum(gaps)).tolist()
    ids = [[100], *([list(range(8))] * len(first))]
    for number, (prompt, _) in enumerate(late, start=2):
        ids.append([*range(8), *range(100 * number, 100 * number + prompt // 4 - 8)])
    trace = pl.DataFrame(
        {
            "request_id": range(len(tokens)),
            "arrival": arrivals,
            "prompt_tokens": [prompt for prompt, _ in tokens],
            "output_tokens": [output for _, output in tokens],
            "prefix_ids": ids,
            "prefix_block_tokens": [4] * len(tokens),
        },
        schema_overrides={"prefix_ids": pl.List(pl.Int64)},
    )
    return config, trace
