"""Engines that build something for every shape they meet: a CUDA graph, a compiled program, an engine file.

What counts as the shape of a step differs:

- `tokens`: all tokens of the step. vLLM pads them to a captured size, steps with a prefill too
  (`vllm/v1/cudagraph_dispatcher.py`); torch.compile guards on that dimension unless it was marked dynamic.
- `sequences`: the number of sequences of a step that only decodes; steps with a prefill run eagerly. SGLang's
  `cuda_graph_runner.py`, vLLM's FULL_DECODE_ONLY, and our own engine.
- `sequences_and_longest`: sequences and new tokens of the longest, to which all others are padded: [batch, length] of
  a TensorRT optimisation profile, an ONNX Runtime session or a padded batch in Hugging Face's `generate`.

A step is computed at the padded size. For the first two that is the step times' own padding to graph sizes; the third
computes every row of a prefill at the padded length, which is asked of the step times here.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, OrderedDict
from collections.abc import Sequence
from typing import Any, Literal, Protocol

from pydantic import Field, model_validator

from calibrate.skew import Spread
from ground.spec import Spec
from sim.engine.device_memory import LARGEST_TENSOR, DeviceMemory
from sim.engine.plan import Plan
from sim.engine.request import Request
from sim.engine.step_costs import StepCost
from sim.results.recorder import EventRecorder

Buckets = tuple[int, ...] | Literal["pow2", "none"]
Shape = tuple[int, ...]


class ShapeSettings(Spec):
    shape: Literal["tokens", "sequences", "sequences_and_longest"] = "tokens"
    buckets: Buckets = Field(
        default="none", description="sizes to which tokens, sequences or the longest are padded; larger steps are eager"
    )
    sequence_buckets: Buckets = Field(default="none", description="the same for the sequences of sequences_and_longest")
    build_seconds: float | None = Field(
        default=None, ge=0, le=1e6, description="of one shape, in which the engine stands still"
    )
    build_bytes: int | None = Field(
        default=None, ge=0, le=LARGEST_TENSOR, description="of device memory that one shape keeps"
    )
    keep: int | None = Field(default=None, gt=0, description="shapes kept, the last used; all if not given")
    eager_launch_seconds: float | None = Field(
        default=None, ge=0, le=1e6, description="that a step takes longer for which nothing was built"
    )

    @model_validator(mode="after")
    def _buckets_rise(self) -> ShapeSettings:
        for name in ("buckets", "sequence_buckets"):
            sizes = getattr(self, name)
            if not isinstance(sizes, str) and (not sizes or sizes[0] < 1 or list(sizes) != sorted(set(sizes))):
                raise ValueError(f"{name} are {list(sizes)}; expected rising positive integers, pow2 or none")
        if self.sequence_buckets != "none" and self.shape != "sequences_and_longest":
            raise ValueError(f"sequence_buckets are of sequences_and_longest, and shape is {self.shape}")
        return self

    def graph_sizes(self, max_num_seqs: int, max_num_batched_tokens: int) -> Sequence[int]:
        """Sizes to which the step times pad: tokens, or sequences of a step that only decodes. Empty: none."""
        if self.shape == "tokens":
            return _sizes(self.buckets, max_num_batched_tokens)
        own = self.buckets if self.shape == "sequences" else self.sequence_buckets
        return _sizes(own, max_num_seqs)

    @property
    def pads_decodes_only(self) -> bool:
        return self.shape != "tokens"


class PaddedTimes(Protocol):
    """What is asked of the step times for the rows of a padded prefill."""

    extrapolated: Counter[str]

    def step(
        self, prefills: Sequence[tuple[int, int]], decodes: int, kv_tokens: int, spread: Spread | None = None
    ) -> float: ...

    def computed_tokens(self, tokens: int, *, prefills: bool) -> int: ...


class ShapeCache:
    """A cost of steps (`sim.engine.step_costs.CostSource`), to be asked before the device's memory."""

    def __init__(
        self,
        settings: ShapeSettings,
        step_times: PaddedTimes,
        limits: tuple[int, int],
        replica: int,
        events: EventRecorder,
        memory: DeviceMemory | None = None,
    ) -> None:
        """`settings` has every number; `limits` are max_num_seqs and max_num_batched_tokens."""
        self._settings = settings
        self._step_times = step_times
        self._replica = replica
        self._events = events
        self._memory = memory
        most_seqs, most_tokens = limits
        self._sequences = _sizes(
            settings.buckets if settings.shape == "sequences" else settings.sequence_buckets, most_seqs
        )
        self._tokens = _sizes(settings.buckets, most_tokens)
        self._built: OrderedDict[Shape, int | None] = OrderedDict()  # → address of what it holds; the last used last
        self._starts = 1 if memory is None else memory.starts
        self._launching = 0.0  # seconds of the step under way, where it has no graph
        self._padding = 0.0, 0  # seconds and tokens that it computes for nobody

    @property
    def built(self) -> int:
        """Shapes that are kept now."""
        return len(self._built)

    def begin(self, plan: Plan, now: float) -> StepCost:
        self._launching, self._padding = 0.0, (0.0, 0)
        if not plan.chunks and not plan.decodes:  # it only preempts
            return StepCost()
        if self._memory is not None and self._memory.starts != self._starts:
            self._starts = self._memory.starts  # a new process has built nothing yet
            self._built.clear()
        shape = self.shape(plan)
        if shape is None:
            assert self._settings.eager_launch_seconds is not None
            self._launching = self._settings.eager_launch_seconds
            return StepCost(each=self._launching)
        once = 0.0
        if shape in self._built:
            self._built.move_to_end(shape)
        else:
            once = self._build(shape, now)
        self._padding = self._padding_of(plan, shape)
        return StepCost(once, padding=self._padding[0])

    def end(self, start: float, steps: int) -> None:
        if self._launching:
            self._events.append(start, self._replica, "launch", seconds=self._launching * steps, amount=steps)
        seconds, tokens = self._padding
        if seconds:
            self._events.append(start, self._replica, "padding", seconds=seconds, amount=tokens)

    def finished(self, request: Request, now: float) -> None:
        pass

    def aborted(self, request: Request, now: float) -> None:
        pass

    def shape(self, plan: Plan) -> Shape | None:
        """The padded shape of a step; None where it runs without one."""
        sequences = plan.decodes + len(plan.chunks)
        kind = self._settings.shape
        if kind == "tokens":
            return _padded((plan.decodes + sum(chunk.tokens for chunk in plan.chunks), self._tokens))
        if kind == "sequences":
            return None if plan.chunks else _padded((sequences, self._sequences))
        longest = max((chunk.tokens for chunk in plan.chunks), default=1)
        return _padded((sequences, self._sequences), (longest, self._tokens if plan.chunks else ()))

    def step_size(self, plan: Plan) -> tuple[int, int]:
        """Tokens that a step computes, padding included, and its sequences."""
        if self._settings.shape == "sequences_and_longest" and plan.chunks and (shape := self.shape(plan)):
            return shape[0] * shape[1], shape[0]
        return padded_step_size(self._step_times, plan)

    def _build(self, shape: Shape, now: float) -> float:
        settings, memory = self._settings, self._memory
        assert settings.build_seconds is not None and settings.build_bytes is not None
        while settings.keep is not None and len(self._built) >= settings.keep:
            _, address = self._built.popitem(last=False)
            if memory is not None and address is not None:
                memory.drop_graph(address)
        address = None
        if memory is not None and settings.build_bytes:
            address = memory.hold_graph(settings.build_bytes)
        self._built[shape] = address
        self._events.append(
            now,
            self._replica,
            "graph",
            seconds=settings.build_seconds,
            amount=settings.build_bytes,
            detail=" × ".join(map(str, shape)),
        )
        return settings.build_seconds

    def _padding_of(self, plan: Plan, shape: Shape) -> tuple[float, int]:
        """Seconds that a padded prefill takes longer than its tokens, and how many tokens more it computes.

        Decoding sequences in it are rows of it too, and rows that stand for no request have nothing cached.
        """
        if self._settings.shape != "sequences_and_longest" or not plan.chunks:
            return 0.0, 0
        rows, longest = shape
        cached = [chunk.start for chunk in plan.chunks]
        if plan.decodes:
            cached += [plan.kv_tokens // plan.decodes] * plan.decodes
        cached += [0] * (rows - len(cached))
        padded, outside = self._uncounted([(longest, start) for start in cached], 0, 0)
        prefills = [(chunk.tokens, chunk.start) for chunk in plan.chunks]
        own, counted = self._uncounted(prefills, plan.decodes, plan.kv_tokens, plan.spread)
        # The engine asks for the step at its own size, which counts that; the padded one is what runs.
        self._step_times.extrapolated.update(outside - counted)
        tokens = rows * longest - plan.decodes - sum(new for new, _ in prefills)
        return max(0.0, padded - own), tokens

    def _uncounted(self, *step: Any) -> tuple[float, Counter[str]]:
        """Seconds of a step, and what of it lies outside the measured grid, which is not counted as asked for."""
        extrapolated = self._step_times.extrapolated
        before = extrapolated.copy()
        seconds = self._step_times.step(*step)
        outside = extrapolated - before
        extrapolated.clear()
        extrapolated.update(before)
        return seconds, outside


def padded_step_size(step_times: PaddedTimes, plan: Plan) -> tuple[int, int]:
    """Tokens that a step computes where its step times pad it, and its sequences."""
    tokens = plan.decodes + sum(chunk.tokens for chunk in plan.chunks)
    if not tokens:
        return 0, 0
    return step_times.computed_tokens(tokens, prefills=bool(plan.chunks)), plan.decodes + len(plan.chunks)


def _sizes(buckets: Buckets, most: int) -> tuple[int, ...]:
    """In order; powers of two up to the first that holds `most`; empty where nothing is padded."""
    if buckets == "none":
        return ()
    if buckets == "pow2":
        return tuple(1 << power for power in range((most - 1).bit_length() + 1))
    assert not isinstance(buckets, str)
    return buckets


def _padded(*of: tuple[int, Sequence[int]]) -> Shape | None:
    """Each number as the least of the sizes beside it that holds it, or itself where there are none; None where one is
    larger than all."""
    shape = []
    for number, sizes in of:
        at = bisect_left(sizes, number)
        if sizes and at == len(sizes):
            return None
        shape.append(sizes[at] if sizes else number)
    return tuple(shape)
