"""From a scenario's links to what an engine's ranks and stages exchange, and how that enters its steps."""

from __future__ import annotations

from typing import Any

import polars as pl

from calibrate.collective_law import Collectives, line
from calibrate.latency import StepLatency
from calibrate.layer_use import LayerUse
from calibrate.links import collectives_of
from calibrate.model import ModelShape
from calibrate.overlap import OverlapLatency
from calibrate.parallelism import Parallelism
from calibrate.pipeline_latency import PipelineLatency
from calibrate.profile import Profile
from calibrate.pruned_latency import PrunedLatency
from calibrate.streamed_latency import StreamedLatency
from ground.assumption import Assumption
from sim.fleet.links.settings import LinkSettings
from sim.study.scenario import EngineSettings
from sim.study.speculation import verify_latency


def engine_collectives(settings: EngineSettings, profile: Profile) -> tuple[Collectives | None, list[Assumption]]:
    """Seconds of collectives over the links that the scenario gives, else those that are known of the device."""
    found = collectives_of(profile)
    assumptions: list[Assumption] = []
    if settings.link is not None:
        ranks = {settings.tensor_parallel, settings.data_parallel, 2} - {1}
        found, assumptions = _over(settings.link, "engine.link", sorted(ranks))
    if settings.pipeline_link is not None:
        between, more = _over(settings.pipeline_link, "engine.pipeline_link", [2], "send_recv")
        found = between if found is None else found.with_others(between)
        assumptions = [*assumptions, *more]
    return found, assumptions


def _over(
    link: LinkSettings, key: str, ranks: list[int], operation: str | None = None
) -> tuple[Collectives, list[Assumption]]:
    """All operations over a link, or one of them, by its latency and bandwidth: in rings, and sent directly."""
    bandwidth, latency, assumptions = link.figures(key)
    table = pl.concat([line(count, latency, bandwidth) for count in ranks])
    if operation is not None:
        table = table.filter(pl.col("operation") == operation)
    source = f"{key}: rings over {bandwidth:.4g} bytes/s and {latency:g} s a hop"
    return Collectives(table, source, word="user"), assumptions


def step_latency_of(
    settings: EngineSettings,
    profile: Profile,
    model: ModelShape,
    *,
    parallelism: Parallelism,
    use: LayerUse | None = None,
    **rest: Any,
) -> StepLatency:
    """The step times of an engine; `use` is what a pruned one runs, `rest` are settings of `StepLatency`, whose errors
    this raises."""
    if use is not None:
        return PrunedLatency(profile, model, use=use, parallelism=parallelism, **rest)
    if settings.speculative is not None:
        return verify_latency(settings.speculative, profile, model, parallelism=parallelism, **rest)
    if settings.pipeline_parallel > 1:
        return PipelineLatency(profile, model, parallelism=parallelism, **rest)
    if settings.weight_offload is not None:
        layers, bandwidth = settings.weight_offload.layers, settings.host_bandwidth
        return StreamedLatency(profile, model, layers=layers, host_bandwidth=bandwidth, parallelism=parallelism, **rest)
    if settings.overlap_collectives:
        least = settings.overlap_min_tokens
        return OverlapLatency(profile, model, parallelism=parallelism, min_tokens=least, **rest)
    return StepLatency(profile, model, parallelism=parallelism, **rest)
