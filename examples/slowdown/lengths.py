"""Every length a new shape, or a few lengths to which all are padded."""

from __future__ import annotations

import polars as pl
from gallery import Exhibit, lines
from symptom import Row, simulated, symptom

from sim.results.folder import Run

BUCKETS = {"engine.shapes.buckets": "pow2", "engine.shapes.sequence_buckets": "pow2"}
BOUNDED = {"engine.shapes.keep": 200}
MB = 1e6

TEXT = """\
Short answers to prompts of every length, on an engine that builds a program for each [batch, length] it meets. What
a program takes to build was calibrated on 189 ms, what it keeps of the device's memory on 47 MB/min; with lengths
padded to powers of two the rest follows. Bounding the cache of programs stops the growth as well, and pays for it
with builds that never end.
"""


def run() -> Exhibit:
    runs = {
        "every length a shape": simulated("lengths"),
        "padded to powers of two": simulated("lengths", BUCKETS),
        "the last 200 shapes kept": simulated("lengths", BOUNDED),
    }
    dynamic, fixed, bounded = runs.values()
    latency = {name: by_minute(run) for name, run in runs.items()}
    reserved = {name: memory(run) for name, run in runs.items()}
    return symptom(
        "Dynamic against fixed input lengths",
        TEXT,
        [
            Row("mean latency", "189 → 96 ms", mean(dynamic), f"{mean(fixed)}; {mean(bounded)} with 200 shapes kept"),
            Row("memory growth", "47 → 12 MB/min", growth(dynamic), f"{growth(fixed)}; {growth(bounded)}"),
            Row("shapes built in an hour", "", built(dynamic), f"{built(fixed)}; {built(bounded)}"),
        ],
        [
            (lines(latency, "minute", "mean latency, ms"), "Mean latency of the requests that arrived in each minute."),
            (lines(reserved, "minute", "reserved, MB"), "Device memory that the allocator holds."),
        ],
    )


def mean(run: Run) -> str:
    return f"{1e3 * run.metrics['e2e']['mean']:.0f} ms"


def growth(run: Run) -> str:
    return f"{run.metrics['memory']['growth'] / MB:.1f} MB/min"


def built(run: Run) -> str:
    return f"{int((run.events['kind'] == 'graph').sum()):,}"


def by_minute(run: Run) -> tuple[list[float], list[float]]:
    minutes = run.requests.group_by(minute=pl.col("arrival") // 60).agg(pl.col("e2e").mean()).sort("minute")
    return minutes["minute"].to_list(), (1e3 * minutes["e2e"]).to_list()


def memory(run: Run) -> tuple[list[float], list[float]]:
    assert run.memory is not None
    minutes = run.memory.group_by(minute=pl.col("time") // 60).agg(pl.col("reserved").last()).sort("minute")
    return minutes["minute"].to_list(), (minutes["reserved"] / MB).to_list()
