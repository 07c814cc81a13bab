"""A run as OpenMetrics text with timestamps: what a Prometheus server would have scraped from its engines."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import polars as pl

from ground.errors import UserError
from sim.results.folder import Run
from sim.results.telemetry.left_out import blocks_of_replicas, left_out
from sim.results.telemetry.replica_series import ReplicaSeries, ReplicaTables, Series
from sim.results.telemetry.samples import Histogram, sample_times, seconds
from sim.results.telemetry.vllm_metrics import Family, families, token_bounds

PREFIX = "vllm:"
_MOST_LINES = 20_000_000  # some 2 GB


@dataclass
class Written:
    """What `write_openmetrics` wrote."""

    replicas: int = 0
    samples: int = 0  # of all replicas
    metrics: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    spaced_by_steps: int = 0  # requests whose tokens' times the steps tell
    longest: int = 0  # tokens, up to which the buckets of counts go


class _Collector:
    """One metric for a registry of prometheus_client."""

    def __init__(self, metric: Any) -> None:
        self._metric = metric

    def collect(self) -> Iterator[Any]:
        yield self._metric


def write_openmetrics(run: Run, path: Path, *, interval: float, epoch: int, longest: int | None = None) -> Written:
    """Write the metrics of every replica, each sampled every `interval` seconds from when it was ready until it ended.

    The labels are vLLM's `model_name` and `engine`, and what Prometheus adds when it scrapes: `instance`, and `pool`
    and `site` where a fleet has them. Each replica is a server of its own, so `engine` is 0 in all of them.

    Args:
        interval: seconds, a whole number of milliseconds.
        epoch: the Unix time of the run's second 0, in seconds.
        longest: tokens of the longest sequence that an engine takes; of the longest request where not known.

    Raises:
        UserError: there would be too many samples.
    """
    engine = run.scenario.get("engine", {})
    longest = longest or int(run.requests.select((pl.col("prompt_tokens") + pl.col("output_tokens")).max()).item() or 1)
    reasons = left_out(run)
    told = [family for family in families(engine.get("preset", "")) if family.name not in reasons]
    bounds = {family.name: np.array(family.bounds or token_bounds(longest), dtype=float) for family in told}
    names = [PREFIX + family.name for family in told]
    written = Written(metrics=names, left_out=reasons, longest=longest)
    replicas = replicas_of(run)
    samples = sum(int((row["ended"] - row["ready"]) / interval) + 1 for row in replicas)
    lines = samples * sum(_lines(family, bounds) for family in told)
    if lines > _MOST_LINES:
        raise UserError(
            f"--interval {interval:g}: gives {lines:,} lines of metrics for {len(replicas)} replicas; expected at most "
            f"{_MOST_LINES:,}, so a longer interval"
        )
    times = [sample_times(row["ready"], row["ended"], interval) for row in replicas]
    written.replicas, written.samples = len(replicas), sum(map(len, times))
    blocks = blocks_of_replicas(run)
    tables = [_tables(run, row["replica"], blocks.get(row["replica"])) for row in replicas]
    series = [ReplicaSeries(own, seconds(at)) for own, at in zip(tables, times, strict=True)]
    written.spaced_by_steps = sum(own.even for own in series)
    labels = [_labels(run, row) for row in replicas]
    with path.open("wb") as file:
        for family in told:
            for number, (own, at) in enumerate(zip(series, times, strict=True)):
                values = own.of(family.name, bounds[family.name])
                _write(file, _metric(family, labels[number], values, at + epoch * 1000, bounds), header=number == 0)
        file.write(b"# EOF\n")
    return written


def _lines(family: Family, bounds: dict[str, np.ndarray]) -> int:
    if family.name == "request_success":
        return 3
    return len(bounds[family.name]) + 3 if family.kind == "histogram" else 1


def replicas_of(run: Run) -> list[dict[str, Any]]:
    """Those that were ever ready, with `requested`, `ready` and `ended` as moments of the run."""
    ends = [run.requests["finish"].max(), run.steps["end"].max(), run.requests["arrival"].max(), 0.0]
    end = max(moment for moment in ends if isinstance(moment, float))
    if run.replicas is not None:
        rows = run.replicas.filter(pl.col("ready").is_not_null())
        rows = rows.with_columns(pl.col("ended").fill_null(pl.max_horizontal(pl.lit(end), "ready")))
        return rows.select("replica", "pool", "site", "requested", "ready", "ended").to_dicts()
    numbers = {*run.steps["replica"].unique(), *run.requests["replica"].unique()} - {-1, None}
    common = {"pool": "", "site": None, "requested": 0.0, "ready": 0.0, "ended": end}
    return [{"replica": number, **common} for number in sorted(numbers)]


def _tables(run: Run, replica: int, blocks: int | None) -> ReplicaTables:
    own = pl.col("replica") == replica
    caching = run.scenario.get("engine", {}).get("enable_prefix_caching", True)
    return ReplicaTables(run.requests.filter(own), run.steps.filter(own), run.events.filter(own), blocks, bool(caching))


def _labels(run: Run, replica: dict[str, Any]) -> dict[str, str]:
    labels = {
        "model_name": model_name(run, replica["site"]),
        "engine": "0",
        "instance": f"replica-{replica['replica']}",
    }
    return labels | {name: replica[name] for name in ("pool", "site") if replica[name]}


def model_name(run: Run, site: str | None) -> str:
    """The model as the scenario calls it, or the one that a site has of its own; of a path the file's name."""
    own = run.scenario.get("fleet", {}).get("sites", {}).get(site, {}).get("model")
    return Path(str(own or run.scenario.get("model", "unknown"))).name.removesuffix(".json")


def _metric(
    family: Family, labels: dict[str, str], values: Series, times: np.ndarray, bounds: dict[str, np.ndarray]
) -> Any:
    """One replica's samples of a metric, as prometheus_client has it; `times` are milliseconds since 1970."""
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
    from prometheus_client.utils import floatToGoString

    metric: Any
    name = PREFIX + family.name
    moments = (times / 1000).tolist()
    if isinstance(values, Histogram):
        metric = HistogramMetricFamily(name, family.help, labels=list(labels))
        edges = [floatToGoString(bound) for bound in (*bounds[family.name], float("inf"))]
        for counts, total, moment in zip(values.counts.tolist(), values.sums.tolist(), moments, strict=True):
            metric.add_metric(list(labels.values()), list(zip(edges, counts, strict=True)), total, timestamp=moment)
        return metric
    if isinstance(values, dict):
        metric = CounterMetricFamily(name, family.help, labels=[*labels, "finished_reason"])
        for reason, counts in values.items():
            for count, moment in zip(counts.tolist(), moments, strict=True):
                metric.add_metric([*labels.values(), reason], count, timestamp=moment)
        return metric
    kind = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
    metric = kind(name, family.help, labels=list(labels))
    for value, moment in zip(values.tolist(), moments, strict=True):
        metric.add_metric(list(labels.values()), value, timestamp=moment)
    return metric


def _write(file: BinaryIO, metric: Any, *, header: bool) -> None:
    """One metric of one replica; a file names a metric once, whoever it is of."""
    from prometheus_client import CollectorRegistry
    from prometheus_client.openmetrics.exposition import ALLOWUTF8, generate_latest

    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(metric))
    # Its other ways to write names turn vLLM's colon into something else.
    text: bytes = generate_latest(registry, escaping=ALLOWUTF8).removesuffix(b"# EOF\n")
    if not header:
        text = b"".join(line for line in text.splitlines(keepends=True) if not line.startswith(b"#"))
    file.write(text)
