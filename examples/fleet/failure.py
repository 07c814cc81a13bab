"""A replica crashes in the middle of serving: who is hurt, and what clients and router make of it."""

from __future__ import annotations

from typing import Any

import polars as pl
from gallery import Exhibit, lines
from scenarios import seconds, share, simulated

from sim.results.folder import Run

CRASH: dict[str, Any] = {"script": [{"at": 200.0, "kind": "crash", "replica": 0}], "restart_seconds": 90.0}
SLOW: dict[str, Any] = {"script": [{"at": 200.0, "kind": "slow", "replica": 0, "factor": 3.0, "duration": 150.0}]}
STORM = {"on": ["failed", "timed_out"], "attempts": 6}
IMPATIENT = {"ttft_timeout": 1.0, "retries": STORM}
CASES: dict[str, dict[str, Any]] = {
    "no failure": {},
    "crash": {"fleet.failures": CRASH},
    "crash, clients try again": {"fleet.failures": CRASH, "fleet.clients": {"retries": {"attempts": 3}}},
    "crash, router fails over": {"fleet.failures": CRASH | {"failover": "all"}},
    "crash, clients give up after 1 s and try 6 times": {"fleet.failures": CRASH, "fleet.clients": IMPATIENT},
    "the same with Envoy's retry budget": {
        "fleet.failures": CRASH,
        "fleet.clients": IMPATIENT | {"retries": STORM | {"budget": {}}},
    },
    "slow node, factor 3": {"fleet.failures": SLOW},
    "slow node, round robin": {"fleet.failures": SLOW, "fleet.router": "round_robin"},
}

TEXT = """\
One of four replicas crashes at 200 s and is back 90 s later. What it was serving is lost, or served again, and three
replicas have the load of four. No request is lost from the books: every one ends with a status. A node that is only
slow is worse for a router that does not count.
"""


def run() -> Exhibit:
    runs = {name: simulated("failure", settings) for name, settings in CASES.items()}
    return Exhibit(
        "Replica failure",
        TEXT,
        ["case", "finished", "failed or timed out", "TTFT p99", "E2E p99", "SLO attainment"],
        [
            (
                name,
                f"{run.metrics['requests']['finished']:,} of {run.metrics['requests']['total']:,}",
                str(run.metrics["requests"]["failed"] + run.metrics["requests"]["timed_out"]),
                seconds(run.metrics["ttft"]["p99"]),
                seconds(run.metrics["e2e"]["p99"]),
                share(run.metrics["slo"]["attainment"]),
            )
            for name, run in runs.items()
        ],
        [
            (
                lines(
                    {name: _by_time(run) for name, run in runs.items() if "slow" not in name},
                    "second",
                    "TTFT p99, s",
                    mode="lines",
                ),
                "First tokens around the crash, by when a request arrived.",
            )
        ],
    )


def _by_time(run: Run) -> tuple[list[float], list[float]]:
    spans = (
        run.requests.group_by(span=20 * (pl.col("arrival") // 20))
        .agg(pl.col("ttft").quantile(0.99))
        .drop_nulls()
        .sort("span")
    )
    return spans["span"].to_list(), spans["ttft"].to_list()
