"""Random tiers behind small prefix caches, and conversations that come back to them."""

from typing import Any

import polars as pl
from engine_workloads import LinearStepTimes, configs
from hypothesis import strategies as st
from session_workloads import BLOCK

from sim.engine.config import EngineConfig
from sim.engine.offload.host_link import HostLinkSettings
from sim.engine.offload.settings import DiskSettings, KvOffloadSettings, PrefetchSettings
from sim.fleet.fit import check_fit
from sim.fleet.fleet import Fleet
from sim.fleet.pool import Pool
from sim.fleet.replica import ReplicaKind

# A block is one byte: a bandwidth is in blocks a second.
disks = st.builds(
    DiskSettings,
    blocks=st.sampled_from([4, 30, 10_000]),
    read_bandwidth=st.sampled_from([50.0, 3_000.0]),
    write_bandwidth=st.sampled_from([20.0, 2_000.0]),
)


@st.composite
def tiers(draw: st.DrawFn) -> KvOffloadSettings:
    write = draw(st.sampled_from(["on_eviction", "on_release", "on_release", "on_idle", "on_preemption"]))
    return KvOffloadSettings(
        host_blocks=draw(st.sampled_from([3, 20, 60, 10_000])),
        disk=draw(st.none() | disks),
        eviction=draw(st.sampled_from(["lru", "arc"])),
        write=write,
        idle_after=draw(st.sampled_from([0.01, 0.3])) if write == "on_idle" else None,
        fetch=draw(st.sampled_from(["always", "always", "cheaper"])),
        prefetch=draw(
            st.none() | st.builds(PrefetchSettings, least_seen=st.just(1), quantile=st.sampled_from([0.2, 0.7]))
        ),
    )


@st.composite
def offloading(draw: st.DrawFn) -> EngineConfig:
    """An engine whose pool holds little more than one request."""
    config = draw(configs(block_size=BLOCK))
    return config.model_copy(
        update={
            "enable_prefix_caching": True,
            "kv_offload": draw(tiers()),
            "kv_blocks": draw(st.sampled_from([24, 30, 40])),
            "preemption": draw(st.sampled_from(["swap", "recompute"] + (["auto"] if config.swap_blocks else []))),
        }
    )


class NothingTakesNoTime(LinearStepTimes):
    """As of a step that only copies or preempts."""

    def step(self, prefills: Any, decodes: int, kv_tokens: int, spread: object = None) -> float:
        return super().step(prefills, decodes, kv_tokens) if prefills or decodes else 0.0


def offloaded(trace: pl.DataFrame, config: EngineConfig, *, leap: bool = True, law: bool = True) -> Fleet:
    check_fit(trace, config)
    link = HostLinkSettings(1, config.kv_offload.disk if config.kv_offload is not None else None)
    kind = ReplicaKind(config, NothingTakesNoTime(has_law=law), host_link=link)
    return Fleet(trace, lambda world, on_end: Pool(world, kind, on_end, replicas=1), seed=3, leap=leap)
