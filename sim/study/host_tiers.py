"""What a scenario's tiers behind the prefix cache are made of, and what had to be assumed for them."""

from __future__ import annotations

from calibrate.latency import StepLatency
from ground.assumption import Assumption
from sim.engine.offload.host_link import NO_TIERS, HostLinkSettings
from sim.study.scenario import EngineSettings


def host_link_of(settings: EngineSettings, step_times: StepLatency) -> HostLinkSettings:
    if settings.kv_offload is None:
        return NO_TIERS
    assert step_times.copies is not None
    return HostLinkSettings(step_times.copies.block_bytes * settings.tensor_parallel, settings.kv_offload.disk)


def of_tiers(settings: EngineSettings, step_times: StepLatency) -> list[Assumption]:
    """Sizes in bytes, of all ranks, and bandwidths that nobody measured."""
    tiers = settings.kv_offload
    if tiers is None:
        return []
    block_bytes = host_link_of(settings, step_times).block_bytes
    size = tiers.host_blocks * block_bytes
    found = [Assumption("engine.kv_offload.host", size, "bytes", "user", f"{tiers.host_blocks} blocks of host memory")]
    if tiers.disk is not None:
        name, size = "engine.kv_offload.disk", tiers.disk.blocks * block_bytes
        found += [
            Assumption(name, size, "bytes", "user", f"{tiers.disk.blocks} blocks on disk"),
            Assumption(f"{name}.read_bandwidth", tiers.disk.read_bandwidth, "bytes/s", "user", "no latency"),
            Assumption(f"{name}.write_bandwidth", tiers.disk.write_bandwidth, "bytes/s", "user", "no latency"),
        ]
    return found
