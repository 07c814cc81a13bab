"""What an autoscaler is told of a pool, as an operator's metrics would tell it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

# What an engine publishes, under vLLM's names (`vllm/v1/metrics/loggers.py`).
WAITING = "vllm:num_requests_waiting"
RUNNING = "vllm:num_requests_running"
KV_USE = "vllm:kv_cache_usage_perc"  # a share, 1 = full
REPLICA_METRICS = (WAITING, RUNNING, KV_USE)

# What is counted at the pool's door, as by the interceptor of KEDA's HTTP add-on.
HELD = "held"  # requests that wait there for want of a replica
CONCURRENCY = "concurrency"  # requests that came and have not ended
REQUEST_RATE = "request_rate"  # requests/s that came
POOL_METRICS = (HELD, CONCURRENCY, REQUEST_RATE)

# What a replica has of something, of which a target may be a share.
KV_BLOCKS = "kv_blocks"
SEATS = "seats"  # `max_num_seqs`
RESOURCES = (KV_BLOCKS, SEATS)


@dataclass(frozen=True, slots=True)
class Pod:
    """A replica that was asked for and has not been told to leave.

    `pending`: it waits for a node or an image, and its container does not run. `metrics` is what it published when it
    was scraped last, by `REPLICA_METRICS`; None: it has published nothing yet. `usage` and `requests` are by
    `RESOURCES`. `queued_tokens`: prompt tokens of its waiting requests. `kv_tokens`: tokens that its KV blocks hold.
    """

    replica: int
    pending: bool
    ready: bool
    metrics: Mapping[str, float] | None = None
    usage: Mapping[str, float] | None = None
    requests: Mapping[str, float] | None = None
    queued_tokens: int = 0
    kv_tokens: int = 0


@dataclass(slots=True)
class Traffic:
    """What came and what ended in so many seconds: sums."""

    seconds: float = 0.0
    arrived: int = 0
    finished: int = 0
    prompt_tokens: int = 0  # of the finished, as what follows
    output_tokens: int = 0
    ttft: float = 0.0
    decode: float = 0.0  # seconds from the first token to the last
    decoded: int = 0  # tokens but the first
    e2e: float = 0.0

    def add(self, other: Traffic) -> None:
        for name in _SUMS:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    @property
    def mean_prompt(self) -> float:
        return self.prompt_tokens / self.finished

    @property
    def mean_output(self) -> float:
        return self.output_tokens / self.finished

    @property
    def mean_ttft(self) -> float:
        return self.ttft / self.finished

    @property
    def mean_itl(self) -> float:
        """Seconds a token; 0 where no request had a second one."""
        return self.decode / self.decoded if self.decoded else 0.0


_SUMS = tuple(field.name for field in fields(Traffic))


@dataclass(frozen=True, slots=True)
class Observation:
    """`time` is now; the metrics are those of the last scrape. `totals` are of the whole pool, replicas that leave
    included, by `REPLICA_METRICS` and `POOL_METRICS`. `traffic` is what was scraped since the last observation."""

    time: float
    pods: Sequence[Pod]
    totals: Mapping[str, float]
    traffic: Traffic

    @property
    def replicas(self) -> int:
        return len(self.pods)

    @property
    def ready(self) -> int:
        return sum(pod.ready for pod in self.pods)
