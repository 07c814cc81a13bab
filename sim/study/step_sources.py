"""What the steps of a scenario's engines take beyond their kernels: one set of sources a replica."""

from __future__ import annotations

import polars as pl

from calibrate.latency import StepLatency
from sim.engine.config import EngineConfig
from sim.engine.device_memory import DeviceMemory, MemorySettings
from sim.engine.host_work import HostWork
from sim.engine.plan import Plan
from sim.engine.shape_cache import ShapeCache, ShapeSettings, padded_step_size
from sim.engine.step_costs import CostSource, StepCosts
from sim.results.memory_recorder import MemoryRecorder, memory_table
from sim.results.recorder import EventRecorder
from sim.study.scenario import EngineSettings


class StepSources:
    """Made for one run; `memory` and `shapes` have every number."""

    def __init__(
        self,
        settings: EngineSettings,
        config: EngineConfig,
        step_times: StepLatency,
        memory: MemorySettings | None,
        shapes: ShapeSettings | None,
    ) -> None:
        self._settings = settings
        self._config = config
        self._step_times = step_times
        self._memory = memory
        self._shapes = shapes
        self._recorders: list[MemoryRecorder] = []

    @property
    def may_leap(self) -> bool:
        """Tensors that grow at every step leave no two steps equal."""
        return self._memory is None or self._memory.kv == "pool"

    def make(self, replica: int, events: EventRecorder, begun: float = 0.0) -> StepCosts | None:
        """Those of one replica that was asked for then; None where nothing of it is switched on."""
        sources: list[CostSource] = []
        shapes: ShapeCache | None = None
        memory: DeviceMemory | None = None

        def step_size(plan: Plan) -> tuple[int, int]:
            return shapes.step_size(plan) if shapes is not None else padded_step_size(self._step_times, plan)

        if self._memory is not None:
            tp = self._settings.tensor_parallel
            memory = DeviceMemory(self._memory, self._step_times.model, tp, replica, events, step_size, begun=begun)
            self._recorders.append(memory.recorder)
        if self._settings.host_work is not None:
            sources.append(HostWork(self._settings.host_work, replica, events, memory))
        if self._shapes is not None:
            limits = self._config.max_num_seqs, self._config.max_num_batched_tokens
            shapes = ShapeCache(self._shapes, self._step_times, limits, replica, events, memory)
            sources.append(shapes)
        if memory is not None:  # with it a step may fail
            sources.append(memory)
        return StepCosts(sources) if sources else None

    def memory_table(self) -> pl.DataFrame | None:
        """The devices' memory over the run, where it was modelled."""
        return memory_table(self._recorders) if self._recorders else None
