"""The memory of a device beside weights and KV pool: an allocator that every step, leak and graph asks.

What its driver calls take is added to the steps that make them. An allocator that keeps what was freed makes none once
it has grown to the largest of the steps, unless what is kept between steps (leaks, caches, graphs, a KV cache that
grows) cuts its segments up. Where it finds no room the engine is started anew, on an empty device.

Memory is looked at where most of a step's tensors are alive. A step replayed from a graph is taken to allocate like an
eager one of its padded size, though its tensors live in the graph's own memory: an upper bound, of constant size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

from pydantic import Field, field_validator, model_validator

from calibrate.model import ModelShape
from ground.errors import UserError
from ground.spec import Spec
from sim.engine.activations import Activations
from sim.engine.allocator import ALLOCATORS
from sim.engine.allocator.allocator import Allocator, MemoryStats
from sim.engine.allocator.caching import CachingAllocator
from sim.engine.allocator.caching_settings import MIN_BLOCK, CachingSettings
from sim.engine.allocator.device import PAGE, SimulatedDevice
from sim.engine.allocator.native import NativeAllocator
from sim.engine.grown_kv import GrownKv
from sim.engine.kept_tensors import KeptTensors
from sim.engine.plan import Plan
from sim.engine.request import Request
from sim.engine.step_costs import FREE, StepCost
from sim.engine.step_replay import OutOfMemory, StepReplay
from sim.results.memory_recorder import MemoryRecorder
from sim.results.recorder import EventRecorder

_GRAPHS = (0, 1)  # the private pool that all graphs share
_RESTARTS_IN_VAIN = 3
_LARGEST_DEVICE = 1 << 62  # a signed word of 64 bits
LARGEST_TENSOR = 1 << 50  # 1 PiB: the sums over a run fit into such a word too
_LARGEST_TOKEN = 1 << 40
_LONGEST = 1e6  # seconds
_LEAKS_A_MINUTE = 10_000  # each is allocated by itself


class MemorySettings(Spec):
    allocator: str = Field(default="caching", description="one of `sim.engine.allocator.ALLOCATORS`, but not paged")
    settings: str = Field(default="", description="of the caching allocator, as PYTORCH_ALLOC_CONF")
    device_bytes: int | None = Field(
        default=None,
        ge=PAGE,
        le=_LARGEST_DEVICE,
        description="bytes of the allocator; what weights and KV pool leave if not given",
    )
    kv: Literal["pool", "grown"] = Field(
        default="pool", description="KV blocks in one preallocated tensor, or tensors that grow by a token a step"
    )
    empty_cache_every: int | None = Field(default=None, gt=0, description="answered requests between empty_cache()")
    leak_per_request: int = Field(
        default=0, ge=0, le=LARGEST_TENSOR, description="bytes that each answered request leaves for good"
    )
    leak_per_minute: float = Field(
        default=0.0, ge=0, le=LARGEST_TENSOR, description="bytes a minute that are never freed"
    )
    leak_tensor_bytes: int = Field(
        default=1 << 20, ge=MIN_BLOCK, le=LARGEST_TENSOR, description="size of the tensors leaked with time"
    )
    retain_per_request: int = Field(
        default=0, ge=0, le=LARGEST_TENSOR, description="bytes kept for an answered request"
    )
    retain_per_token: int = Field(default=0, ge=0, le=_LARGEST_TOKEN, description="the same for each of its tokens")
    retained_requests: int | None = Field(
        default=None, gt=0, description="for how many answered requests they are kept; for all if not given"
    )
    malloc_seconds: float | None = Field(
        default=None, ge=0, le=_LONGEST, description="of a driver call that gives memory"
    )
    free_seconds: float | None = Field(
        default=None,
        ge=0,
        le=_LONGEST,
        description="of one that takes it back, for which the device must have come to rest",
    )
    restart_seconds: float | None = Field(
        default=None, ge=0, le=_LONGEST, description="until an engine that ran out serves again"
    )
    sample_every: float = Field(
        default=1.0, gt=0, le=1000 * _LONGEST, description="seconds between rows of the memory table"
    )

    @field_validator("settings")
    @classmethod
    def _known_settings(cls, text: str) -> str:
        CachingSettings.parse(text)
        return text

    @model_validator(mode="after")
    def _fit_the_allocator(self) -> MemorySettings:
        known = ALLOCATORS.keys() - {"paged"}  # whose pages have no addresses in a row, which a tensor needs
        if self.allocator not in known:
            raise ValueError(f"allocator is {self.allocator!r}; expected one of {', '.join(sorted(known))}")
        tensors = self.leak_per_minute / self.leak_tensor_bytes
        if tensors > _LEAKS_A_MINUTE:
            raise ValueError(
                f"leak_per_minute is {self.leak_per_minute:g} in tensors of {self.leak_tensor_bytes} bytes, "
                f"{tensors:.0f} a minute; expected at most {_LEAKS_A_MINUTE}, by a larger leak_tensor_bytes"
            )
        if self.allocator != "caching":
            for name in ("settings", "empty_cache_every"):
                if getattr(self, name):
                    raise ValueError(f"{name} is of the caching allocator, and allocator is {self.allocator}")
        if self.allocator == "native" and (self.malloc_seconds is None or self.free_seconds is None):
            raise ValueError("the native allocator calls the driver for every tensor; expected malloc_seconds and "
                             "free_seconds, as measured on the device")  # fmt: skip
        return self


class DeviceMemory:
    """A cost of steps (`sim.engine.step_costs.CostSource`), to be asked last: after it a step may fail.

    Leaks and caches are brought up to date where the batch changes. A native allocator's calls for the tensors of a
    step are counted and not played, as every layer makes the same.
    """

    def __init__(
        self,
        settings: MemorySettings,
        model: ModelShape,
        tp: int,
        replica: int,
        events: EventRecorder,
        step_size: Callable[[Plan], tuple[int, int]],
        *,
        begun: float = 0.0,
    ) -> None:
        """`settings` has every number. `step_size`: tokens that a step computes, padding included, and sequences.
        `begun`: when the first process was.

        Raises:
            UserError: the device is smaller than the pool of its allocator.
        """
        self._settings = settings
        self._replica = replica
        self._events = events
        self._step_size = step_size
        self._activations = Activations(model, tp)
        self._grown = GrownKv(model, tp) if settings.kv == "grown" else None
        self._kept = KeptTensors(
            leak_per_request=settings.leak_per_request,
            leak_per_minute=settings.leak_per_minute,
            leak_tensor=settings.leak_tensor_bytes,
            retain_per_request=settings.retain_per_request,
            retain_per_token=settings.retain_per_token,
            keep=settings.retained_requests,
        )
        self.recorder = MemoryRecorder(replica, settings.sample_every)
        self.starts = 0  # processes that there have been
        self._in_vain = 0  # restarts since the last answer
        self._cost = FREE
        self._each = 0.0  # seconds of the calls that a native allocator makes in every step
        self._each_bytes = 0  # that they move
        self._changed = True  # the batch, or what is kept, since the step before
        self._decodes = -1
        self._start(begun)

    # What steps cost.

    def begin(self, plan: Plan, now: float) -> StepCost:
        if not (self._changed or self._grown or plan.chunks or plan.preempted or plan.decodes != self._decodes):
            return self._cost
        self._changed, self._decodes = False, plan.decodes
        try:
            once = self._advance(plan, now)
        except OutOfMemory as error:
            return self._restart(now, error.bytes)
        self._cost = StepCost(each=self._each)
        return StepCost(once, self._each) if once else self._cost

    def end(self, start: float, steps: int) -> None:
        if self._each_bytes:
            seconds, moved = self._each * steps, self._each_bytes * steps
            self._events.append(start, self._replica, "allocator", seconds=seconds, amount=moved)

    def finished(self, request: Request, now: float) -> None:
        self._changed = True
        self._in_vain = 0
        self._answered += 1
        self._kept.answered(request)
        if self._grown is not None:
            self._grown.drop(request.request_id, self._give)

    def aborted(self, request: Request, now: float) -> None:
        self._changed = True
        if self._grown is not None:
            self._grown.drop(request.request_id, self._give)

    # What graphs hold.

    def hold_graph(self, size: int) -> int | None:
        """Memory for a captured graph, in the graphs' own pool; None if there is no room, and then the step fails."""
        if isinstance(self._allocator, CachingAllocator):
            address = self._allocator.allocate(size, pool=_GRAPHS)
        else:
            address = self._allocator.allocate(size)
        if address is None:
            self._lacking = size
            return None
        self._graphs[address] = size
        self._changed = True
        self._version += 1
        return address

    def drop_graph(self, address: int) -> None:
        del self._graphs[address]
        self._give(address)
        self._changed = True

    # How.

    def _start(self, now: float) -> None:
        settings = self._settings
        assert settings.device_bytes is not None
        self.starts += 1
        self._device = SimulatedDevice(settings.device_bytes)
        self._allocator = _make_allocator(settings, self._device)
        chosen = self._allocator.settings if isinstance(self._allocator, CachingAllocator) else None
        # Old free blocks are collected by age, which every allocation raises.
        ages = chosen is not None and chosen.garbage_collection_threshold > 0.0
        self._replay = StepReplay(self._allocator, self._activations, remembers=not ages)
        self._kept.start(now)
        if self._grown is not None:
            self._grown.clear()
        self._graphs: dict[int, int] = {}  # address → bytes
        self._lacking = 0  # bytes of a graph that found no room
        self._version = 0  # of what is kept between steps
        self._answered = 0  # requests since empty_cache
        self._changed = True
        self._decodes = -1
        self._each, self._each_bytes = 0.0, 0
        self._counted = self._device.mallocs, self._device.frees, self._device.moved

    def _advance(self, plan: Plan, now: float) -> float:
        """Do what the step that begins does; the seconds of its driver calls that equal steps do not make."""
        if self._lacking:
            raise OutOfMemory(self._lacking)
        settings, grown = self._settings, self._grown
        if self._kept.settle(now, self._take, self._give):
            self._version += 1
        if grown is not None:
            for request in plan.victims:
                grown.drop(request.request_id, self._give)
        every = settings.empty_cache_every
        if every is not None and self._answered >= every and isinstance(self._allocator, CachingAllocator):
            self._answered = 0
            self._allocator.empty_cache()
        tokens, sequences = self._step_size(plan)
        if not tokens:  # it only preempts
            self._each, self._each_bytes = 0.0, 0
            return self._driver(now)
        in_layer = None
        if grown is not None:
            grown.begin(plan)
            self._version += 1
            in_layer = self._grow
        if isinstance(self._allocator, NativeAllocator) and in_layer is None:
            once = self._driver(now)
            stats = self._replay.play(tokens, sequences, self._version)
            self._skip_driver()
            self._calls_of_every_step(tokens, sequences)
        else:
            stats = self._replay.play(tokens, sequences, self._version, in_layer)
            once = self._driver(now)
        self._observe(now, stats)
        return once

    def _calls_of_every_step(self, tokens: int, sequences: int) -> None:
        malloc, free = self._settings.malloc_seconds, self._settings.free_seconds
        assert malloc is not None and free is not None
        self._each = self._activations.tensors * (malloc + free)
        self._each_bytes = 2 * self._activations.bytes_made(self._activations.sizes(tokens, sequences))

    def _driver(self, now: float) -> float:
        """Seconds of the calls since this was last asked, which become an event."""
        mallocs, frees, moved = self._counted
        self._skip_driver()
        mallocs, frees = self._device.mallocs - mallocs, self._device.frees - frees
        if not mallocs and not frees:
            return 0.0
        settings = self._settings
        assert settings.malloc_seconds is not None and settings.free_seconds is not None
        seconds = mallocs * settings.malloc_seconds + frees * settings.free_seconds
        self._events.append(
            now,
            self._replica,
            "allocator",
            seconds=seconds,
            amount=self._device.moved - moved,
            detail=f"{mallocs} from the driver, {frees} back",
        )
        return seconds

    def _skip_driver(self) -> None:
        self._counted = self._device.mallocs, self._device.frees, self._device.moved

    def _restart(self, now: float, lacking: int) -> StepCost:
        settings = self._settings
        assert settings.restart_seconds is not None and settings.device_bytes is not None
        self._in_vain += 1
        if self._in_vain > _RESTARTS_IN_VAIN:
            free = settings.device_bytes - self._allocator.stats().active
            but = ", in no piece or segment that holds them" if free >= lacking else ""
            raise UserError(
                f"engine.memory: out of memory at {now:.6g} s: {lacking} bytes were asked for, and {free} of the "
                f"{settings.device_bytes} of device_bytes are free{but}; {_RESTARTS_IN_VAIN} restarts before it, "
                "without an answer between them; expected room for the steps of one request"
            )
        self._events.append(now, self._replica, "restart", seconds=settings.restart_seconds, amount=lacking)
        self._start(now + settings.restart_seconds)
        self._cost = FREE
        self._observe(now, self._allocator.stats())
        return StepCost(settings.restart_seconds, restart=True)

    def _observe(self, now: float, stats: MemoryStats) -> None:
        self.recorder.observe(
            now,
            (
                stats.requested,
                stats.allocated,
                stats.active,
                stats.reserved,
                stats.inactive_split,
                stats.largest_free,
                self._kept.leaked,
                sum(self._graphs.values()),
            ),
        )

    def _grow(self, layer: int) -> None:
        assert self._grown is not None
        self._grown.grow(layer, self._take, self._give)

    def _take(self, size: int) -> int:
        return self._replay.take(size)

    def _give(self, address: int) -> None:
        self._allocator.free(address)
        self._version += 1


def _make_allocator(settings: MemorySettings, device: SimulatedDevice) -> Allocator:
    if settings.allocator != "caching":
        return ALLOCATORS[settings.allocator](device)
    conf = CachingSettings.parse(settings.settings)
    # PyTorch collects only below a limit that the process has set itself.
    limit = device.total if conf.garbage_collection_threshold else None
    return CachingAllocator(device, replace(conf, limit=limit))
