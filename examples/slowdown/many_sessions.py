"""What idle sessions hold, and what it costs the busy ones."""

from __future__ import annotations

import polars as pl
from gallery import Exhibit, lines
from symptom import Row, loaded, simulated, symptom

from sim.results.folder import Run
from sim.study.simulate import load_trace

RATES = (0.05, 0.1, 0.15, 0.2, 0.25)
BLOCK_BYTES = 16 * 131072  # of Llama-3.1-8B
FORGET = {"engine.enable_prefix_caching": False}
KEEP = {"engine.session_retention": {"policy": "lru"}}
CROWDED = {"trace.synth.arrivals.rate": 0.2, "trace.synth.labels": {"priorities": {0: 3, 10: 1}}}
BY_PRIORITY = {"engine.session_retention": {"policy": "priority"}}

TEXT = """\
Conversations with a minute's thought between turns on one A100. While all idle sessions fit, a turn computes its
own tokens only. Past that the cache gives up a session that will come back, its next turn computes everything
again, and the time for that makes everybody else's turns longer: the fall is steep.
"""


def run() -> Exhibit:
    rows = []
    active, kept_mean, lost_mean = [], [], []
    for rate in RATES:
        kept = simulated("sessions", {"trace.synth.arrivals.rate": rate} | KEEP)
        lost = simulated("sessions", {"trace.synth.arrivals.rate": rate} | FORGET)
        active.append(active_sessions(kept))
        kept_mean.append(kept.metrics["e2e"]["mean"])
        lost_mean.append(lost.metrics["e2e"]["mean"])
        assert kept.sessions is not None
        memory = kept.sessions["peak_blocks"].mean() * BLOCK_BYTES / 1e6  # type: ignore[operator]
        given_up = int((kept.events["kind"] == "session_evicted").sum())
        rows.append(
            Row(
                f"{active[-1]:.0f} active sessions of {memory:.0f} MB",
                "mean latency grows",
                f"{lost_mean[-1]:.2f} s without keeping KV",
                f"{kept_mean[-1]:.2f} s; prefix hits {100 * kept.metrics['prefix_hit_rate']:.0f} %, "
                f"{given_up:,} times given up",
            )
        )
    told = {}
    for name, policy in (("lru", KEEP), ("priority", BY_PRIORITY)):
        levels = by_priority(simulated("sessions", CROWDED | policy))
        told[name] = " / ".join(f"{1e3 * levels[p][0]:.0f} ms ({100 * levels[p][1]:.0f} % cached)" for p in (10, 0))
    rows.append(
        Row(
            "TTFT of the urgent quarter / of the others",
            "LRU by priority",
            f"{told['lru']} by age alone",
            told["priority"],
        )
    )
    figure = lines(
        {"KV kept, least recently used given up": (active, kept_mean), "nothing kept": (active, lost_mean)},
        "active sessions",
        "mean latency, s",
    )
    return symptom(
        "Many sessions",
        TEXT,
        rows,
        [(figure, "Mean latency of a turn over the sessions that are open at once.")],
    )


def active_sessions(run: Run) -> float:
    """Open on average: the time from each session's first admission to its last answer, over the run's."""
    assert run.sessions is not None
    return float((run.sessions["last"] - run.sessions["first"]).sum() / run.metrics["duration"])


def by_priority(run: Run) -> dict[int, tuple[float, float]]:
    """Of the requests of each priority: mean TTFT, and the share of prompt tokens that was found cached."""
    table = run.requests.join(_priorities(), on="request_id").group_by("priority")
    cached = pl.col("cached_tokens").sum() / pl.col("prompt_tokens").sum()
    rows = table.agg(pl.col("ttft").mean(), cached=cached).iter_rows(named=True)
    return {row["priority"]: (row["ttft"], row["cached"]) for row in rows}


def _priorities() -> pl.DataFrame:
    return load_trace(loaded("sessions", CROWDED)).requests.select("request_id", "priority")
