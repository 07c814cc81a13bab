"""Which replica a request is sent to: routers on Mooncake's conversation trace."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from gallery import Exhibit, points
from scenarios import seconds, share, simulated

HERE = Path(__file__).parent
DATA = Path(os.environ.get("SIMCTL_DATA", HERE.parents[2] / "shared" / "data"))
MOONCAKE = DATA / "traces" / "mooncake-fast25" / "conversation_trace.jsonl.gz"
ROUTERS: dict[str, dict[str, Any]] = {
    "round robin": {"fleet.router": "round_robin"},
    "least outstanding": {"fleet.router": "least_outstanding"},
    "least tokens": {"fleet.router": "least_tokens"},
    "power of two": {"fleet.router": "power_of_two"},
    "prefix-aware (SGLang)": {"fleet.router": "prefix_aware"},
    "KV cost (Dynamo)": {"fleet.router": "kv_cost"},
    "scorers (llm-d)": {"fleet.router": "scorers"},
}

TEXT = """\
The same requests on the same eight replicas. A router that knows where a prefix was computed saves its computing, as
long as it does not send everybody to one replica. {trace}
"""


def run() -> Exhibit:
    trace, said = _trace()
    runs = {name: simulated("routers", trace | router) for name, router in ROUTERS.items()}
    return Exhibit(
        "Routers",
        TEXT.format(trace=said),
        ["router", "prefix hit rate", "TTFT mean", "TTFT p99", "TPOT p99", "SLO attainment"],
        [
            (
                name,
                share(run.metrics["prefix_hit_rate"]),
                seconds(run.metrics["ttft"]["mean"]),
                seconds(run.metrics["ttft"]["p99"]),
                seconds(run.metrics["tpot"]["p99"]),
                share(run.metrics["slo"]["attainment"]),
            )
            for name, run in runs.items()
        ],
        [
            (
                points(
                    {
                        name: (100 * run.metrics["prefix_hit_rate"], run.metrics["ttft"]["mean"])
                        for name, run in runs.items()
                    },
                    "prompt tokens found in the prefix cache, %",
                    "mean TTFT, s",
                ),
                "What a router finds in the caches, and what that does to the first token.",
            )
        ],
    )


def _trace() -> tuple[dict[str, Any], str]:
    if MOONCAKE.is_file():
        return {"trace": {"file": str(MOONCAKE)}}, "The trace is Mooncake's conversation (FAST '25)."
    return {}, "Mooncake's trace is not here (SIMCTL_DATA names no folder that has it): the requests are synthetic."
