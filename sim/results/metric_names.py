"""Every metric by its dotted name: what it is called, its unit, and which way is better."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal

from ground.errors import UserError

Unit = Literal[
    "s",
    "requests",
    "req/s",
    "tok/s",
    "share",
    "sequences",
    "price",
    "yes/no",
    "preemptions",
    "loads",
    "bytes",
    "bytes/min",
    "replicas",
    "attempts",
    "tokens",
    "changes",
    "GPU h",
    "J",
    "J/token",
    "W",
]
Better = Literal["smaller", "larger", "neither"]

LATENCIES = {"ttft": "TTFT", "tpot": "TPOT", "e2e": "E2E latency", "queue": "Queueing time"}
STATUSES = ("finished", "rejected", "shed", "timed_out", "failed", "unfinished")
STATISTICS = ("mean", "p50", "p90", "p95", "p99", "max")


@dataclass(frozen=True)
class Metric:
    """`label` is for people; `unit` says how to read the number; `better` is what a search should prefer."""

    label: str
    unit: Unit
    better: Better


METRICS: dict[str, Metric] = {
    "requests.total": Metric("Requests", "requests", "neither"),
    "requests.finished": Metric("Finished requests", "requests", "larger"),
    "requests.rejected": Metric("Rejected requests", "requests", "smaller"),
    "requests.shed": Metric("Shed requests", "requests", "smaller"),
    "requests.timed_out": Metric("Timed out requests", "requests", "smaller"),
    "requests.failed": Metric("Failed requests", "requests", "smaller"),
    "requests.unfinished": Metric("Unfinished requests", "requests", "smaller"),
    "duration": Metric("Duration", "s", "smaller"),
    **{
        f"{latency}.{statistic}": Metric(f"{label} {statistic}", "s", "smaller")
        for latency, label in LATENCIES.items()
        for statistic in STATISTICS
    },
    "throughput.requests": Metric("Request throughput", "req/s", "larger"),
    "throughput.output_tokens": Metric("Output throughput", "tok/s", "larger"),
    "throughput.prompt_tokens": Metric("Prompt throughput", "tok/s", "larger"),
    "slo.attainment": Metric("SLO attainment", "share", "larger"),
    "slo.met": Metric("SLO met", "yes/no", "larger"),
    "goodput.requests": Metric("Goodput", "req/s", "larger"),
    "goodput.output_tokens": Metric("Goodput in tokens", "tok/s", "larger"),
    "kv.mean": Metric("KV use mean", "share", "neither"),
    "kv.peak": Metric("KV use peak", "share", "neither"),
    "prefix_hit_rate": Metric("Prefix cache hits", "share", "larger"),
    "preemptions": Metric("Preemptions", "preemptions", "smaller"),
    "gpu_seconds": Metric("GPU time", "s", "smaller"),
    "cost.total": Metric("Cost", "price", "smaller"),
    "cost.per_million_output_tokens": Metric("Cost per million output tokens", "price", "smaller"),
    "cost.per_million_tokens": Metric("Cost per million tokens", "price", "smaller"),
    "cost.per_request": Metric("Cost per finished request", "price", "smaller"),
    "cost.per_good_request": Metric("Cost per request within the SLO", "price", "smaller"),
    "decode_batch": Metric("Mean decode batch", "sequences", "neither"),
    "busy.mean": Metric("Busy share of time", "share", "neither"),
    "memory.reserved_peak": Metric("Reserved device memory peak", "bytes", "smaller"),
    "memory.reserved_end": Metric("Reserved device memory at the end", "bytes", "smaller"),
    "memory.growth": Metric("Growth of reserved memory", "bytes/min", "smaller"),
    "memory.fragmentation": Metric("Idle share of reserved memory", "share", "smaller"),
    "weights.loads": Metric("Weight loads", "loads", "smaller"),
    "weights.bytes": Metric("Weight bytes loaded", "bytes", "smaller"),
    "weights.evictions": Metric("Weights evicted", "loads", "smaller"),
    "weights.hit_rate": Metric("Weight cache hits", "share", "larger"),
    "weights.wait.mean": Metric("Wait for weights mean", "s", "smaller"),
    "weights.wait.p99": Metric("Wait for weights p99", "s", "smaller"),
    "weights.wait.max": Metric("Wait for weights max", "s", "smaller"),
    "scaling.replicas.mean": Metric("Ready replicas mean", "replicas", "smaller"),
    "scaling.replicas.max": Metric("Ready replicas max", "replicas", "smaller"),
    "scaling.replicas.min": Metric("Ready replicas min", "replicas", "neither"),
    "scaling.asked": Metric("Replicas asked for mean", "replicas", "smaller"),
    "scaling.gpu_hours": Metric("GPU hours", "GPU h", "smaller"),
    "scaling.asleep_gpu_hours": Metric("GPU hours asleep", "GPU h", "smaller"),
    "scaling.asleep_cost": Metric("Cost of sleeping engines, in the total", "price", "smaller"),
    "scaling.ups": Metric("Scale-ups", "changes", "smaller"),
    "scaling.downs": Metric("Scale-downs", "changes", "smaller"),
    "scaling.starts": Metric("Cold starts", "changes", "smaller"),
    "scaling.start": Metric("Cold start mean", "s", "smaller"),
    "scaling.under_provisioned": Metric("Under-provisioned share of time", "share", "smaller"),
    "placement.deadline_hit_rate": Metric("Deadlines kept", "share", "larger"),
    "kv_transfer.share": Metric("Prompts computed elsewhere", "share", "neither"),
    "kv_transfer.bytes": Metric("KV bytes moved between pools", "bytes", "smaller"),
    "kv_transfer.seconds.mean": Metric("KV transfer mean", "s", "smaller"),
    "kv_transfer.seconds.p99": Metric("KV transfer p99", "s", "smaller"),
    "kv_transfer.wait.mean": Metric("From prefill to decode mean", "s", "smaller"),
    "kv_transfer.wait.p99": Metric("From prefill to decode p99", "s", "smaller"),
    "kv_offload.found": Metric("Prompt tokens found or fetched", "share", "larger"),
    "kv_offload.fetched": Metric("Tokens fetched from a tier", "tokens", "neither"),
    "kv_offload.prefetched": Metric("Tokens fetched before any asked", "tokens", "neither"),
    "kv_offload.from_disk": Metric("Tokens of these from disk", "tokens", "neither"),
    "kv_offload.written": Metric("Tokens written to host memory", "tokens", "smaller"),
    "kv_offload.stored": Metric("Tokens stored on disk", "tokens", "smaller"),
    "kv_offload.wait.mean": Metric("Wait for a fetch mean", "s", "smaller"),
    "kv_offload.wait.p99": Metric("Wait for a fetch p99", "s", "smaller"),
    "speculation.drafted": Metric("Drafted tokens", "tokens", "neither"),
    "speculation.acceptance": Metric("Drafts accepted", "share", "larger"),
    "speculation.tokens_per_step": Metric("Tokens a sequence and step", "tokens", "larger"),
    "speculation.seconds": Metric("Time of drafting", "s", "smaller"),
    "reliability.crashes": Metric("Replicas that crashed", "replicas", "smaller"),
    "reliability.lost": Metric("Requests on crashed replicas", "requests", "smaller"),
    "reliability.down": Metric("From crash to replacement mean", "s", "smaller"),
    "reliability.slowed": Metric("Time lost to slow nodes", "s", "smaller"),
    "reliability.failovers": Metric("Requests sent on after a crash", "requests", "neither"),
    "reliability.retries": Metric("Retries of clients", "attempts", "smaller"),
    "reliability.timeouts": Metric("Attempts given up", "attempts", "smaller"),
    "reliability.attempts": Metric("Attempts per request", "attempts", "smaller"),
    "energy.joules": Metric("Energy", "J", "smaller"),
    "energy.joules_per_output_token": Metric("Energy per output token", "J/token", "smaller"),
    "energy.watts.mean": Metric("Mean power", "W", "smaller"),
    "energy.states.prefill": Metric("Energy of prefill", "J", "smaller"),
    "energy.states.decode": Metric("Energy of decode", "J", "smaller"),
    "energy.states.idle": Metric("Energy while idle", "J", "smaller"),
    "energy.states.starting": Metric("Energy while starting", "J", "smaller"),
    "energy.states.asleep": Metric("Energy while asleep", "J", "smaller"),
    "energy.cost": Metric("Price of the energy", "price", "smaller"),
}

# First words of metrics that a run has only where it models what they measure.
OPTIONAL = frozenset(
    {"energy", "kv_offload", "kv_transfer", "memory", "placement", "reliability", "scaling", "speculation", "weights"}
)


def describe(name: str) -> Metric:
    """What is known of the metric called `name`.

    Raises:
        UserError: there is no such metric; the message lists the nearest names.
    """
    if name not in METRICS:
        family = [known for known in METRICS if known.split(".")[0] == name.split(".")[0]]
        near = get_close_matches(name, METRICS, n=4, cutoff=0.5) or family
        hint = f"did you mean {' or '.join(near)}?" if near else f"expected one of {', '.join(METRICS)}"
        raise UserError(f"metric {name!r} is unknown; {hint}")
    return METRICS[name]


def metric(metrics: Mapping[str, Any], name: str) -> float | None:
    """The number called `name` ("ttft.p99") in the nested result of `compute`; null where it could not be computed, the
    run does not model it, or was written before there was such a metric.

    Raises:
        UserError: there is no metric of that name.
    """
    describe(name)
    first = name.split(".")[0]
    if first in OPTIONAL and first not in metrics:
        return None
    value: Any = metrics
    for key in name.split("."):
        value = None if value is None else value.get(key)
    number: float | None = value
    return number


def flatten(metrics: Mapping[str, Any]) -> dict[str, float | None]:
    """Every metric by its dotted name, in the order of `METRICS`: one row of a sweep's table."""
    return {name: metric(metrics, name) for name in METRICS}
