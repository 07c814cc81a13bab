"""What an operator sets of the tiers behind the prefix cache."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from ground.spec import Spec


class DiskSettings(Spec):
    blocks: int = Field(gt=0, description="KV blocks that fit the disk tier")
    read_bandwidth: float = Field(gt=0, description="bytes/s from disk to host memory")
    write_bandwidth: float = Field(gt=0, description="bytes/s from host memory to disk")


class PrefetchSettings(Spec):
    quantile: float = Field(
        default=0.5,
        gt=0,
        lt=1,
        description="of the idle times between turns seen so far: that long after an answer its session's blocks are "
        "fetched, before the next turn asks",
    )
    least_seen: int = Field(default=20, gt=0, description="idle times seen before any is predicted")


class KvOffloadSettings(Spec):
    """The defaults are those of vLLM's OffloadingConnector, but that it writes as it computes and not at the end."""

    host_blocks: int = Field(gt=0, description="KV blocks that fit the host tier, beside those of swap_blocks")
    disk: DiskSettings | None = Field(default=None, description="a tier behind host memory; none if not given")
    eviction: Literal["lru", "arc"] = Field(default="lru", description="whose blocks leave a full tier")
    write: Literal["on_eviction", "on_release", "on_idle", "on_preemption"] = Field(
        default="on_release",
        description="when blocks are written to host memory: before a step overwrites them; when their request ends "
        "or is preempted; when a session's next turn has not come for idle_after seconds; only when a request is "
        "preempted",
    )
    idle_after: float | None = Field(default=None, gt=0, description="seconds after an answer; only with on_idle")
    fetch: Literal["always", "cheaper"] = Field(
        default="always",
        description="what the tiers have is fetched: whenever they have it; where the copies are predicted to take "
        "less than to compute it again",
    )
    prefetch: PrefetchSettings | None = Field(
        default=None, description="blocks are fetched before the next turn comes; when it has come if not given"
    )

    @model_validator(mode="after")
    def _idle_time_fits(self) -> KvOffloadSettings:
        if self.write == "on_idle" and self.idle_after is None:
            raise ValueError("write is on_idle and idle_after is not given; expected the seconds after an answer")
        if self.write != "on_idle" and self.idle_after is not None:
            raise ValueError(f"idle_after is given and write is {self.write}; expected on_idle")
        return self


class WeightOffloadSettings(Spec):
    layers: int = Field(
        gt=0, description="layers, evenly spaced, whose weights are copied to the device in every step, one ahead"
    )
