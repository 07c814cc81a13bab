"""Simulated runs to be diagnosed, and costs of steps that are planted in them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import polars as pl
from known_profile import EXPERTS, MODEL, make_profile

from calibrate.collective_law import Collectives, line
from calibrate.copy_law import CopyLaw
from calibrate.latency import StepLatency
from calibrate.parallelism import Parallelism
from sim.engine.config import EngineConfig
from sim.engine.host_work import HostWork, HostWorkSettings
from sim.engine.plan import Plan
from sim.engine.request import Request
from sim.engine.step_costs import CostSource, StepCost, StepCosts
from sim.fleet.equal_replicas import equal_replicas
from sim.results.folder import Run
from sim.results.recorder import EventRecorder


@dataclass
class Planted:
    """Makes one kind of event of every step that computes a prompt, or of every one; it takes `once`, and each of the
    equal steps `each`."""

    events: EventRecorder
    replica: int
    kind: str
    once: float
    each: float = 0.0
    always: bool = False
    cost: StepCost = field(default_factory=StepCost)

    def begin(self, plan: Plan, now: float) -> StepCost:
        once = self.once if plan.chunks or self.always else 0.0
        self.cost = StepCost(once=once, each=self.each)
        return self.cost

    def end(self, start: float, steps: int) -> None:
        seconds = self.cost.once + self.cost.each * steps
        if seconds:
            self.events.append(start, self.replica, self.kind, seconds=seconds, amount=1)

    def finished(self, request: Request, now: float) -> None:
        pass


Sources = Callable[[int, EventRecorder], Sequence[CostSource]]


def step_latency(
    config: EngineConfig | None = None,
    *,
    mixed: bool = False,
    overhead: bool = False,
    graphs: Sequence[int] = (),
    ranks: int = 1,
    link: tuple[float, float] = (2e-6, 1e9),
    host_bandwidth: float = 1e8,
    skewed: bool = False,
    experts: bool = False,
) -> StepLatency:
    """Of the known profile, for an engine of that configuration; `link` is latency (s) and bandwidth (bytes/s)."""
    config = config or EngineConfig(kv_blocks=100)
    model = EXPERTS if experts else MODEL
    profile = make_profile(model, ranks, mixed=mixed, overhead=overhead)
    if skewed:
        rows = [
            {"prefill_chunk": chunk, "kv_prefill": 0, "n_decode": n, "n_long": 1, "kv_short": 100, "kv_long": long}
            | {"seconds": 1.0 + long / 4000, "equal_seconds": 1.0}
            for chunk in (0, 64)
            for n in (2, 8, 32)
            for long in (200, 800, 3200)
        ]
        profile = replace(profile, tables={**profile.tables, "skew": pl.DataFrame(rows)})
        profile.grid["skew_model"] = "neighbours"
    gpus = ranks * config.data_parallel
    return StepLatency(
        profile,
        model,
        parallelism=Parallelism(ranks, config.data_parallel),
        collectives=Collectives(line(gpus, *link), "made by the test") if gpus > 1 else None,
        graph_sizes=graphs,
        host_overlaps=config.async_scheduling,
        copies=CopyLaw(profile, config.block_size * 1024, host_bandwidth) if config.swap_blocks else None,
    )


def simulated(
    trace: pl.DataFrame,
    config: EngineConfig,
    times: StepLatency,
    *,
    sources: Sources | None = None,
    host: HostWorkSettings | None = None,
    replicas: int = 1,
    leap: bool = True,
) -> Run:
    """A run as `sim.study.simulate` would give it, without metrics."""

    def costs(replica: int, events: EventRecorder) -> StepCosts | None:
        found = list(sources(replica, events)) if sources else []
        if host is not None:
            found.append(HostWork(host, replica, events))
        return StepCosts(found) if found else None

    result = equal_replicas(trace, config, times, replicas=replicas, costs=costs, leap=leap).run()
    return Run(result.requests, result.steps, {}, {}, [], name="made by the test", events=result.events)


def trace_of(count: int, *, gap: float, prompt: int, output: int, **columns: Any) -> pl.DataFrame:
    """Equal requests, `gap` seconds apart."""
    given = {"prompt_tokens": [prompt] * count, "output_tokens": [output] * count, **columns}
    return pl.DataFrame({"request_id": range(count), "arrival": [gap * i for i in range(count)], **given})
