"""The tensors of a step, and that a replay which leaves layers and steps out ends where a whole one does."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibrate.memory import activation_peak
from calibrate.model import ModelShape, load_model
from sim.engine.activations import Activations
from sim.engine.allocator.allocator import Allocator, MemoryStats
from sim.engine.allocator.caching import CachingAllocator
from sim.engine.allocator.caching_settings import MIB, CachingSettings
from sim.engine.allocator.device import SimulatedDevice
from sim.engine.allocator.native import NativeAllocator
from sim.engine.allocator.size_class import SizeClassAllocator
from sim.engine.step_replay import OutOfMemory, StepReplay

TINY = load_model("tiny-llama")
WIDE = replace(TINY, name="wide", hidden=1024, intermediate=5504, vocab=32000)
MOE = replace(TINY, name="experts", experts=8, experts_per_token=2, moe_intermediate=384)

models = st.sampled_from([TINY, WIDE, MOE]).flatmap(
    lambda model: st.integers(1, 9).map(lambda layers: replace(model, layers=layers))
)


@given(models, st.sampled_from([1, 2, 4]), st.integers(1, 3000), st.integers(1, 300))
def test_every_tensor_begins_once_and_ends(model: ModelShape, tp: int, tokens: int, sequences: int) -> None:
    activations = Activations(model, tp)
    sizes = activations.sizes(tokens, sequences)
    alive: set[str] = set()
    for moves in (activations.before, *[activations.layer] * model.layers, activations.after):
        between = set(alive)
        for tensor, begins in moves:
            assert (tensor in alive) != begins
            assert sizes[tensor] > 0
            (alive.add if begins else alive.remove)(tensor)
        if moves is activations.layer:
            assert alive == between == {"residual", "hidden"}
    assert not alive


def peak(activations: Activations, tokens: int, sequences: int) -> int:
    sizes = activations.sizes(tokens, sequences)
    alive, most = 0, 0
    for tensor, begins in (*activations.before, *activations.layer * activations.layers, *activations.after):
        alive += sizes[tensor] if begins else -sizes[tensor]
        most = max(most, alive)
    return most


@given(st.integers(1, 4096))
def test_the_mlp_needs_what_the_pool_was_sized_for(tokens: int) -> None:
    """`calibrate.memory` reckons with residual, input, gate and up, and their product."""
    model = load_model("Llama-3.1-8B")
    one = peak(Activations(model), tokens, 1)
    mlp = tokens * (2 * model.hidden + 3 * model.intermediate) * model.dtype_bytes
    logits = (tokens * model.hidden + model.hidden) * model.dtype_bytes + model.vocab * (model.dtype_bytes + 4) + 8
    assert one == max(mlp, logits)
    assert mlp <= activation_peak(model, 1, tokens, 1)


@given(models, st.sampled_from([1, 2]), st.integers(1, 3000), st.integers(1, 300))
def test_most_is_where_the_peak_is(model: ModelShape, tp: int, tokens: int, sequences: int) -> None:
    activations = Activations(model, tp)
    sizes = activations.sizes(tokens, sequences)
    moves, index = activations.most(sizes)
    before = {"residual": sizes["residual"], "hidden": sizes["hidden"]} if moves is not activations.before else {}
    alive = sum(before.values())
    for tensor, begins in moves[: index + 1]:
        alive += sizes[tensor] if begins else -sizes[tensor]
    assert alive == peak(activations, tokens, sequences)


class EveryLayer(StepReplay):
    """The plain loop: every layer of every step."""

    def __init__(self, allocator: Allocator, activations: Activations) -> None:
        super().__init__(allocator, activations, remembers=False)


def layout(allocator: CachingAllocator) -> list[list[tuple[int, int, bool]]]:
    return [[(b.address, b.size, b.allocated) for b in blocks] for _, blocks in allocator.segments()]


conf = st.builds(
    CachingSettings,
    max_split_size=st.sampled_from([None, None, 24 * MIB]),
    roundup_power2_divisions=st.sampled_from([(0,) * 16, (4,) * 16]),
    expandable_segments=st.booleans(),
)
makers: list[Callable[[SimulatedDevice, CachingSettings], Allocator]] = [
    CachingAllocator,
    lambda device, _: SizeClassAllocator(device, device.total),
    lambda device, _: NativeAllocator(device),
]


class Drawn(Activations):
    """Tensors of any size, as no model has them, by the number of tokens."""

    def __init__(self, layers: int, tp: int, drawn: list[list[int]]) -> None:
        super().__init__(replace(TINY, layers=layers), tp)
        self._drawn = drawn

    def sizes(self, tokens: int, sequences: int) -> dict[str, int]:
        return dict(zip(super().sizes(1, 1), self._drawn[tokens % len(self._drawn)], strict=True))


tensor_bytes = st.one_of(st.integers(1, 2 * MIB), st.integers(1, 20).map(lambda half: half * MIB * 3 // 2))
drawn = st.builds(
    Drawn,
    st.integers(1, 9),
    st.sampled_from([1, 2]),
    st.lists(st.lists(tensor_bytes, min_size=13, max_size=13), min_size=1, max_size=4),
)
# A step of (tokens, sequences), bytes to keep, or which of the kept to free.
doings = st.lists(
    st.one_of(
        st.tuples(st.integers(1, 1500), st.integers(1, 64)),
        st.tuples(st.integers(1, 4), st.just(1)),
        st.one_of(st.integers(1, 40 * MIB), tensor_bytes),
        st.integers(-9, -1),
    ),
    max_size=30,
)


@pytest.mark.parametrize("maker", makers)
@settings(max_examples=250, deadline=None)
@given(st.one_of(st.builds(Activations, models, st.sampled_from([1, 2])), drawn, drawn), conf, doings)
def test_leaving_out_is_exact(
    maker: Callable[[SimulatedDevice, CachingSettings], Allocator],
    activations: Activations,
    chosen: CachingSettings,
    doings: list,
) -> None:
    devices = [SimulatedDevice(400 * MIB) for _ in range(2)]
    allocators = [maker(device, chosen) for device in devices]
    replays = [StepReplay(allocators[0], activations), EveryLayer(allocators[1], activations)]
    kept: list[list[int]] = [[], []]
    version = 0
    for doing in doings:
        results: list[MemoryStats | int | None] = []
        for allocator, replay, own in zip(allocators, replays, kept, strict=True):
            try:
                if isinstance(doing, tuple):
                    results.append(replay.play(*doing, version))
                elif doing > 0:
                    own.append(replay.take(doing))
                elif own:
                    allocator.free(own.pop(doing % len(own)))
            except OutOfMemory as error:
                results.append(error.bytes)
        version += not isinstance(doing, tuple)
        if len(results) == 2:
            if isinstance(results[0], MemoryStats):
                assert isinstance(results[1], MemoryStats)
                # A pass that is left out makes no driver calls, which only an allocator that keeps nothing notices.
                results = [replace(one, device_mallocs=0, device_frees=0) for one in results]  # type: ignore[type-var]
            assert results[0] == results[1]
        if results and isinstance(results[0], int):
            return  # out of memory: of no more use
        assert allocators[0].changes == allocators[1].changes
        assert devices[0].used == devices[1].used
    if isinstance(allocators[0], CachingAllocator) and isinstance(allocators[1], CachingAllocator):
        assert layout(allocators[0]) == layout(allocators[1])


def test_a_settled_step_is_not_played() -> None:
    asked: list[int] = []

    class Counting(CachingAllocator):
        def allocate(self, size: int, *more: int) -> int | None:
            asked.append(size)
            return super().allocate(size, *more)  # type: ignore[arg-type]

    model = replace(WIDE, layers=80)
    activations = Activations(model)
    replay = StepReplay(Counting(SimulatedDevice(400 * MIB)), activations)
    replay.play(512, 8, 0)
    assert len(asked) < activations.tensors / 4
    replay.play(512, 8, 0)
    before = len(asked)
    for _ in range(1000):
        replay.play(512, 8, 0)
    assert len(asked) == before
    replay.play(512, 8, 1)
    assert len(asked) > before, "something else was allocated since"
