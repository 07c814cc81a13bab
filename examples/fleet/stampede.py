"""Bursts on weights that are not there: a load a request, one load for all, from a peer, or before the first."""

from __future__ import annotations

from typing import Any

from gallery import Exhibit
from scenarios import seconds, share, simulated

WARM = [f"model-{rank}" for rank in range(4)]
CASES: dict[str, dict[str, Any]] = {
    "every miss loads": {"fleet.weight_cache.single_flight": False},
    "one load for all who miss": {},
    "and from a peer, at 25 GB/s": {"fleet.weight_cache.peer_bandwidth": 25_000_000_000},
    "and the four most popular preloaded": {"fleet.weight_cache.preload": WARM},
}

TEXT = """\
Twenty fine-tunes, eight hosts, room for four on each. A burst finds weights missing on several hosts at once.
"""


def run() -> Exhibit:
    rows = []
    for name, settings in CASES.items():
        metrics = simulated("stampede", settings).metrics
        weights = metrics["weights"]
        rows.append(
            (
                name,
                f"{weights['loads']:,}",
                seconds(weights["wait"]["p99"]),
                seconds(metrics["ttft"]["p99"]),
                share(metrics["slo"]["attainment"]),
            )
        )
    header = ["weights", "loads in an hour", "wait for weights p99", "TTFT p99", "SLO attainment"]
    return Exhibit("Stampede on a model cache", TEXT, header, rows)
