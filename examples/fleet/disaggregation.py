"""Prompts and tokens on the same GPUs, or apart: at equal GPUs, over links of different speed."""

from __future__ import annotations

from typing import Any

from gallery import Exhibit, lines
from scenarios import seconds, share, simulated

GB = 1e9
RATES = [20.0, 30.0, 40.0, 50.0, 60.0]


def apart(prefill: int, decode: int, bandwidth: float, **more: Any) -> dict[str, Any]:
    pools = {
        "prefill": {"replicas": prefill, "router": "least_tokens"},
        "decode": {"replicas": decode, "router": "least_tokens"},
    }
    return {"fleet.disaggregation": pools | {"link": {"bandwidth": bandwidth}} | more}


TOGETHER = {"fleet.replicas": 8, "fleet.router": "least_tokens"}
CASES: dict[str, dict[str, Any]] = {
    "together, budget 8,192": TOGETHER,
    "together, budget 512": TOGETHER | {"engine.max_num_batched_tokens": 512},
    "3 for prompts, 5 for tokens, 50 GB/s": apart(3, 5, 50 * GB),
    "4 for prompts, 4 for tokens, 50 GB/s": apart(4, 4, 50 * GB),
    "4 and 4, 1.25 GB/s (10 Gbit/s)": apart(4, 4, 1.25 * GB),
    "4 and 4, short prompts stay": apart(4, 4, 50 * GB, min_prompt=1000),
}

TEXT = """\
Eight GPUs in every row. Together, a long prompt delays everybody's next token; apart, tokens come evenly, and what a
prompt left must cross a link first. The pools must fit the mix, which moves: where one of them is the bottleneck, the
other's GPUs idle.
"""


def run() -> Exhibit:
    runs = {name: simulated("disaggregation", settings) for name, settings in CASES.items()}
    sweep = {
        name: ([*RATES], [100 * _at(CASES[name], rate) for rate in RATES])
        for name in ("together, budget 8,192", "together, budget 512", "4 for prompts, 4 for tokens, 50 GB/s")
    }
    return Exhibit(
        "Prefill and decode apart",
        TEXT,
        ["GPUs", "TTFT p50", "TTFT p99", "TPOT p50", "TPOT p99", "within both limits"],
        [
            (
                name,
                seconds(run.metrics["ttft"]["p50"]),
                seconds(run.metrics["ttft"]["p99"]),
                seconds(run.metrics["tpot"]["p50"]),
                seconds(run.metrics["tpot"]["p99"]),
                share(run.metrics["slo"]["attainment"]),
            )
            for name, run in runs.items()
        ],
        [
            (
                lines(sweep, "requests/s", "within TTFT 1 s and TPOT 10 ms, %"),
                "The same eight GPUs at rising load.",
            )
        ],
    )


def _at(settings: dict[str, Any], rate: float) -> float:
    short = {"trace.synth.duration": 60, "trace.synth.arrivals.rate": rate}
    attainment: float = simulated("disaggregation", settings | short).metrics["slo"]["attainment"]
    return attainment
