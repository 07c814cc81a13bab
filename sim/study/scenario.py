"""A scenario: what arrives, on which engines, and what is promised. Read from YAML, checked, resolved."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, model_validator

from calibrate.parallelism import ExpertExchange
from ground.errors import UserError
from ground.spec import Spec, check_spec, read_yaml
from sim.engine.config import EngineLimits, decide_prefix_caching
from sim.engine.device_memory import MemorySettings
from sim.engine.host_work import HostWorkSettings
from sim.engine.offload.settings import WeightOffloadSettings
from sim.engine.presets import GRAPHS_DECODE_ONLY, PRESETS, capture_sizes
from sim.engine.shape_cache import ShapeSettings
from sim.fleet.admission_settings import AdmissionSettings
from sim.fleet.autoscaling import AutoscalerSettings
from sim.fleet.cold_start_settings import ColdStartSettings
from sim.fleet.disaggregation_settings import DisaggregationSettings
from sim.fleet.links.settings import LinkSettings
from sim.fleet.places.mesh_settings import MeshSettings
from sim.fleet.places.placement_settings import PlacementSettings, SiteSettings
from sim.fleet.pool_settings import PoolSettings, spell_out_router
from sim.fleet.reliability.client_settings import ClientSettings
from sim.fleet.reliability.failure_settings import FailureSettings
from sim.fleet.routers import ROUTERS
from sim.fleet.routing_settings import RoutingSettings
from sim.fleet.weights.settings import WeightCacheSettings
from sim.results.slo import Slo
from sim.study.pools import check_pools, pools_of, scaled, spell_out_routing
from traces.source import TraceSource

_PATHS = (
    "trace.file",
    "trace.synth.lengths.resample.file",
    "profile",
    "model",
    "quality",
    "engine.speculative.draft_model",
    "engine.speculative.draft_profile",
    "fleet.autoscaler.history.file",
    "fleet.autoscaler.history.synth.lengths.resample.file",
)
_OF_A_POOL = (
    "profile",
    "model",
    "autoscaler.history.file",
    "autoscaler.history.synth.lengths.resample.file",
)


class EngineSettings(EngineLimits):
    """What is set on every engine; what is not, the preset decides (`sim.engine.presets`)."""

    preset: str = "vllm-0.11"
    tensor_parallel: int = Field(default=1, gt=0, description="GPUs that shard every layer")
    expert_parallel: bool = Field(default=False, description="experts are whole on one GPU each, not sharded over all")
    disable_custom_all_reduce: bool = Field(default=False, description="use NCCL's all-reduce at every size")
    expert_exchange: ExpertExchange = Field(
        default="allgather_reducescatter",
        description="how tokens reach the experts of other engines: all to all engines, or each to those it needs",
    )
    link: LinkSettings | None = Field(
        default=None, description="what links the GPUs of an engine; measured collectives are used if not given"
    )
    pipeline_link: LinkSettings | None = Field(
        default=None, description="what links the stages of a pipeline; as the GPUs of one if not given"
    )
    overlap_collectives: bool = Field(
        default=False, description="a step's halves take turns: one computes while the other exchanges"
    )
    overlap_min_tokens: int = Field(default=32, ge=2, description="tokens of a step from which on it is halved")
    cudagraph_capture_sizes: tuple[int, ...] | None = Field(
        default=None, description="batch sizes with a CUDA graph, to which steps are padded; the preset's if not given"
    )
    host_bandwidth: float | None = Field(
        default=None, gt=0, description="bytes/s between device and host, where the profile did not measure copies"
    )
    host_overhead: float | None = Field(
        default=None, ge=0, description="seconds of a step's host work, where the profile did not measure it"
    )
    host_work: HostWorkSettings | None = None
    memory: MemorySettings | None = Field(
        default=None, description="the device's allocator and what it holds; not modelled if not given"
    )
    shapes: ShapeSettings | None = Field(
        default=None, description="what is built for every shape; all graphs were captured before if not given"
    )
    weight_offload: WeightOffloadSettings | None = Field(
        default=None, description="layers whose weights stream from host memory; all are on the device if not given"
    )
    model_skew: bool = Field(default=True, description="whether unequal contexts make decode attention slower")
    gpu_memory_utilization: float = Field(default=0.9, gt=0, le=1)
    kv_blocks: int | None = Field(default=None, gt=0, description="blocks; predicted from the memory if not given")

    @property
    def gpus(self) -> int:
        return self.tensor_parallel * self.pipeline_parallel * self.data_parallel

    @property
    def graph_sizes(self) -> Sequence[int]:
        """Batch sizes with a captured CUDA graph, rising."""
        if self.cudagraph_capture_sizes is not None:
            return self.cudagraph_capture_sizes
        if self.shapes is not None:
            return self.shapes.graph_sizes(self.max_num_seqs, self.max_num_batched_tokens)
        return capture_sizes(self.preset, self.max_num_seqs, self.max_num_batched_tokens)

    @property
    def graphs_decode_only(self) -> bool:
        """Whether a step with a prefill runs without a graph."""
        return self.shapes.pads_decodes_only if self.shapes is not None else self.preset in GRAPHS_DECODE_ONLY

    @property
    def limits(self) -> dict[str, Any]:
        """What the scheduler is told of it."""
        return {name: getattr(self, name) for name in EngineLimits.model_fields}

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        preset = given.get("preset", cls.model_fields["preset"].default)
        if not isinstance(preset, str) or preset not in PRESETS:
            raise ValueError(f"unknown preset {preset!r}, expected one of {', '.join(PRESETS)}")
        return {**PRESETS[preset], **decide_prefix_caching(given)}

    @model_validator(mode="after")
    def _capture_sizes_rise(self) -> EngineSettings:
        sizes = self.cudagraph_capture_sizes or ()
        if any(size < 1 for size in sizes) or list(sizes) != sorted(set(sizes)):
            raise ValueError(f"cudagraph_capture_sizes are {list(sizes)}; expected rising positive integers")
        if self.shapes is not None and self.cudagraph_capture_sizes is not None:
            raise ValueError("cudagraph_capture_sizes and shapes are both given; expected shapes.buckets for the sizes")
        return self

    @model_validator(mode="after")
    def _links_fit(self) -> EngineSettings:
        if self.pipeline_link is not None and self.pipeline_parallel == 1:
            raise ValueError("pipeline_link is given and pipeline_parallel is 1; expected stages that it links")
        if self.overlap_collectives and self.pipeline_parallel > 1:
            raise ValueError(
                f"overlap_collectives is true and pipeline_parallel is {self.pipeline_parallel}; expected one of them"
            )
        return self

    @model_validator(mode="after")
    def _blocks_are_of_a_pool(self) -> EngineSettings:
        if not self.kv_cache and self.kv_blocks is not None:
            raise ValueError(f"kv_cache is false and kv_blocks is {self.kv_blocks}; expected none, as for no pool")
        if self.kv_cache and (self.memory is None or self.memory.kv == "pool"):
            return self
        kind = "memory.kv is grown" if self.kv_cache else "kv_cache is false"
        usual = EngineSettings.model_fields["gpu_memory_utilization"].default
        if self.gpu_memory_utilization != usual:
            raise ValueError(
                f"{kind} and gpu_memory_utilization is {self.gpu_memory_utilization:g}; expected none, as for no pool"
            )
        if self.reserved_blocks not in (0, PRESETS[self.preset].get("reserved_blocks")):
            raise ValueError(f"{kind} and reserved_blocks is {self.reserved_blocks}; expected none, as for no pool")
        return self

    @model_validator(mode="after")
    def _costs_fit(self) -> EngineSettings:
        for name in ("host_work", "memory", "shapes"):
            if getattr(self, name) is not None and self.data_parallel > 1:
                raise ValueError(f"{name} is given and data_parallel is {self.data_parallel}; expected 1")
            if getattr(self, name) is not None and self.pipeline_parallel > 1:
                raise ValueError(f"{name} is given and pipeline_parallel is {self.pipeline_parallel}; expected 1")
        others = {
            "pipeline_parallel": self.pipeline_parallel > 1,
            "data_parallel": self.data_parallel > 1,
            "speculative": self.speculative is not None,
            "pruning": self.pruning is not None,
            "overlap_collectives": self.overlap_collectives,
            "swap_blocks": self.swap_blocks > 0,
            "kv_offload": self.kv_offload is not None,
            "memory": self.memory is not None,
        }
        if self.weight_offload is not None and (given := [name for name, is_given in others.items() if is_given]):
            raise ValueError(f"weight_offload is given, and so is {given[0]}; expected one of them")
        if self.memory is not None and self.kv_offload is not None:
            raise ValueError("memory and kv_offload are both given; expected one, as a restart would lose the tiers")
        if self.memory is not None and self.memory.kv == "grown":
            if self.kv_blocks is not None:
                raise ValueError(f"memory.kv is grown and kv_blocks is {self.kv_blocks}; expected none, as for no pool")
            if self.enable_prefix_caching or self.swap_blocks:
                raise ValueError("memory.kv is grown; expected enable_prefix_caching false and no swap_blocks")
            if not self.kv_cache or self.kv_reservation != "paged":
                raise ValueError("memory.kv is grown; expected kv_cache true and kv_reservation paged, its default")
        return self

    @model_validator(mode="after")
    def _speculation_fits_costs(self) -> EngineSettings:
        others = {"memory": self.memory, "shapes": self.shapes, "overlap_collectives": self.overlap_collectives or None}
        for name, given in others.items():
            if self.speculative is not None and given is not None:
                raise ValueError(f"speculative is given, and so is {name}; expected one of them")
        return self


class FleetSettings(Spec):
    replicas: int = Field(default=1, ge=0, description="that are there when the run begins")
    router: str = Field(default="round_robin", description=f"one of {', '.join(ROUTERS)}")
    routing: RoutingSettings = Field(
        default=RoutingSettings(), description="how late a router knows of the load, and each one's options by its name"
    )
    admission: AdmissionSettings | None = Field(
        default=None, description="which requests are turned away at the door; none if not given"
    )
    weight_cache: WeightCacheSettings | None = Field(
        default=None, description="the models that a replica serves; without it the weights of all are always there"
    )
    autoscaler: AutoscalerSettings | None = Field(
        default=None, description="the policy by which replicas come and go; their number is fixed if not given"
    )
    cold_start: ColdStartSettings | None = Field(
        default=None, description="what a replica that comes needs until it is ready; it is ready at once if not given"
    )
    clients: ClientSettings | None = Field(
        default=None, description="how long clients wait and whether they try again; for ever and never if not given"
    )
    failures: FailureSettings | None = Field(
        default=None, description="replicas that crash, nodes and links that are slow; none if not given"
    )
    disaggregation: DisaggregationSettings | None = Field(
        default=None, description="one pool computes prompts and another decodes; one does both if not given"
    )
    sites: dict[str, SiteSettings] = Field(default={}, description="pools far apart, by name; one place if none")
    placement: PlacementSettings | None = Field(
        default=None, description="to which of the sites a request is sent; to the first if not given"
    )
    mesh: MeshSettings | None = Field(
        default=None, description="the proxies of a service mesh before the service; none if not given"
    )

    @model_validator(mode="after")
    def _pools_fit(self) -> FleetSettings:
        check_pools(self)
        return self

    @model_validator(mode="after")
    def _crashed_replicas_restart_somehow(self) -> FleetSettings:
        failures = self.failures
        if failures is None or not failures.crashes or not failures.restarts:
            return self
        if failures.restart_seconds is None and any(pool.cold_start is None for pool in scaled(self).values()):
            raise ValueError(
                "failures crash replicas, and neither failures.restart_seconds nor cold_start (of each pool) is given; "
                "expected one of them, or failures.restarts false"
            )
        return self

    @model_validator(mode="after")
    def _somebody_serves(self) -> FleetSettings:
        if not self.replicas and (self.autoscaler is None or self.autoscaler.min):
            raise ValueError("replicas is 0; expected at least 1, or an autoscaler whose min is 0")
        return self

    @model_validator(mode="before")
    @classmethod
    def _spell_out_router(cls, given: Any) -> Any:
        """The options of the routers that are used are there, with their defaults."""
        return spell_out_routing(spell_out_router(given, {})) if isinstance(given, dict) else given


class Scenario(Spec):
    trace: TraceSource
    model: str = Field(description="a bundled model, or the path of a Hugging Face config.json")
    profile: str = Field(description="a profile's folder or bundled name, or datasheet:DEVICE")
    engine: EngineSettings = EngineSettings()
    fleet: FleetSettings = FleetSettings()
    slo: Slo = Slo()
    quality: str | None = Field(
        default=None, description="quality.json of simctl validate quality: what pruning costs this model"
    )
    gpu_hour_price: float | None = Field(default=None, gt=0, description="price of one GPU for one hour")
    electricity_price: float | None = Field(
        default=None, gt=0, description="price of one kWh that the GPUs draw, apart from that of the GPUs"
    )
    seed: int = Field(default=0, ge=0)

    @property
    def gpus(self) -> int:
        if pools := pools_of(self.fleet):
            return sum(pool.replicas * self.engine_of(key, pool).gpus for key, pool in pools.items())
        return self.fleet.replicas * self.engine.gpus

    def engine_of(self, key: str, pool: PoolSettings) -> EngineSettings:
        """That of the pool under `key`. An `engine.preset` of its own brings its own defaults: of the scenario's engine
        it keeps what differs from the defaults there.

        Raises:
            UserError: the keys of its `engine` make none.
        """
        engine = self.engine
        given: dict[str, Any] = {name: getattr(engine, name) for name in engine.model_fields_set}
        if pool.engine.get("preset", engine.preset) != engine.preset:
            usual = EngineSettings(preset=engine.preset)
            given = {name: value for name, value in given.items() if value != getattr(usual, name)}
        return check_spec(EngineSettings, {**given, **pool.engine}, f"{key}.engine")

    def resolved(self) -> dict[str, Any]:
        """As plain data, with every default spelled out and nothing that was left open."""
        return self.model_dump(mode="json", exclude_none=True)


def load_scenario(path: Path, overrides: dict[str, Any] | None = None) -> Scenario:
    """Read a scenario; `overrides` are dotted keys, set before it is checked. Paths become absolute.

    Raises:
        UserError: not readable, or a wrong key, type, unit or range; names the key.
    """
    return make_scenario(read_yaml(path), overrides or {}, path.parent, str(path))


def make_scenario(data: dict[str, Any], overrides: dict[str, Any], base_dir: Path, source: str) -> Scenario:
    """The same from plain data; relative paths in it start at `base_dir`."""
    return check_spec(Scenario, with_absolute_paths(override(data, overrides, source), base_dir), source)


def scenario_of(data: dict[str, Any], setting: dict[str, Any]) -> Scenario:
    """The scenario of plain data whose paths are absolute, with the dotted keys of `setting` set.

    Raises:
        UserError: the setting makes no valid scenario; names the key.
    """
    return check_spec(Scenario, override(data, setting, "the scenario"), "the scenario")


def override(data: dict[str, Any], overrides: dict[str, Any], source: str) -> dict[str, Any]:
    """A copy of `data` in which each dotted key of `overrides` has its value.

    Raises:
        UserError: a key leads through what is no mapping.
    """
    for key, value in overrides.items():
        data = _with(data, key.split("."), value, key, source)
    return data


def with_absolute_paths(data: dict[str, Any], base_dir: Path) -> dict[str, Any]:
    """A copy of `data` whose paths no longer depend on where it is read."""
    own = []
    for several in ("fleet.disaggregation", "fleet.sites"):
        pools = lookup(data, several)
        own += [f"{several}.{name}.{key}" for name in (pools if isinstance(pools, dict) else ()) for key in _OF_A_POOL]
    found = {key: lookup(data, key) for key in (*_PATHS, *own)}
    absolute = {key: absolute_path(key, value, base_dir) for key, value in found.items() if value is not None}
    return override(data, absolute, "")


def absolute_path(key: str, value: Any, base_dir: Path) -> Any:
    """The value of a dotted key; where it is a relative path, as an absolute one that starts at `base_dir`."""
    several = key.startswith(("fleet.sites.", "fleet.disaggregation."))
    of_a_pool = several and key.split(".", 3)[-1] in _OF_A_POOL
    if (key not in _PATHS and not of_a_pool) or not isinstance(value, str):
        return value
    # A profile or model may be a bundled name; only what exists beside the scenario is meant as a path.
    is_path = key.endswith(".file") or key == "quality" or (base_dir / value).exists()
    return str((base_dir / value).resolve()) if is_path else value


def parse_override(text: str) -> tuple[str, Any]:
    """`key=value`, the value as YAML: `engine.max_num_seqs=64`.

    Raises:
        UserError: no `=`, no key, or a value that is not YAML.
    """
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise UserError(f"--set {text}: expected key=value, such as engine.max_num_seqs=64")
    try:
        return key.strip(), yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise UserError(f"--set {text}: the value is not YAML ({' '.join(str(error).split())})") from error


def _with(data: dict[str, Any], keys: list[str], value: Any, key: str, source: str) -> dict[str, Any]:
    """A copy of `data` in which the nested key is `value`."""
    first, *rest = keys
    if not rest:
        return {**data, first: value}
    inner = data.get(first) or {}
    if not isinstance(inner, dict):
        raise UserError(f"{source}: {key}: {first!r} is {inner!r}, expected a mapping of keys")
    return {**data, first: _with(inner, rest, value, key, source)}


def lookup(data: Any, key: str) -> Any:
    """What stands under a dotted key; None where nothing does."""
    for part in key.split("."):
        data = data.get(part) if isinstance(data, dict) else None
    return data
