"""What the tensors of a step do to a device allocator, without going through every layer of every step.

An allocator decides by what it holds and what is free. A pass that leaves all of that as it was, and for which it took
nothing from its device, can be repeated at no change at all. So the layers are replayed one by one only until the state
between two of them comes back (the residual stream and what is kept stay where they are, so it is known by the address
of the hidden state), and a step of a shape that has left the allocator as it was is not replayed while nothing else
changes it. Both are exact; `tests/sim/engine/test_step_replay.py` holds them to the plain loop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from sim.engine.activations import BETWEEN_LAYERS, Activations, Move, Sizes
from sim.engine.allocator.allocator import Allocator, MemoryStats

_SHAPES_KEPT = 4096


class OutOfMemory(Exception):
    """The allocator found no room for `bytes`."""

    def __init__(self, bytes_: int) -> None:
        super().__init__(bytes_)
        self.bytes = bytes_


class StepReplay:
    """Steps of one process on one allocator."""

    def __init__(self, allocator: Allocator, activations: Activations, *, remembers: bool = True) -> None:
        """`remembers`: whether what was free before may be forgotten; an allocator that counts how long each block lay
        idle must see every layer of every step."""
        self._allocator = allocator
        self._activations = activations
        self._remembers = remembers
        # (tokens, sequences) → the statistics where most is alive, of steps that changed nothing; and as of when.
        self._settled: dict[tuple[int, int], MemoryStats] = {}
        self._settled_at: tuple[int, int] = (-1, -1)

    def play(
        self, tokens: int, sequences: int, version: int, in_layer: Callable[[int], None] | None = None
    ) -> MemoryStats:
        """One step; the statistics of the moment at which the most of its tensors are alive.

        Args:
            version: changes whenever something else has been allocated or freed.
            in_layer: called in each layer between the attention's input and output, where it may allocate; then every
                layer is gone through.

        Raises:
            OutOfMemory: the allocator is of no more use.
        """
        at = self._allocator.changes, version
        if at != self._settled_at or len(self._settled) >= _SHAPES_KEPT:
            self._settled.clear()
            self._settled_at = at
        known = self._settled.get((tokens, sequences))
        if known is not None:
            return known
        sizes = self._activations.sizes(tokens, sequences)
        stats = self._pass(sizes, in_layer)
        if self._remembers and in_layer is None and self._allocator.changes == at[0]:
            self._settled[tokens, sequences] = stats
        return stats

    def take(self, size: int) -> int:
        """The address of `size` bytes. Raises OutOfMemory."""
        address = self._allocator.allocate(size)
        if address is None:
            raise OutOfMemory(size)
        return address

    # One pass.

    def _pass(self, sizes: Sizes, in_layer: Callable[[int], None] | None) -> MemoryStats:
        activations, alive = self._activations, dict[str, int]()
        most, index = activations.most(sizes)
        stats: MemoryStats | None = None

        def go(moves: Sequence[Move], layer: int | None = None) -> None:
            """Make and drop tensors, and look at the allocator where most are alive."""
            nonlocal stats
            for at, (tensor, begins) in enumerate(moves):
                if begins:
                    alive[tensor] = self.take(sizes[tensor])
                else:
                    self._allocator.free(alive.pop(tensor))
                if at == 0 and layer is not None and in_layer is not None:
                    in_layer(layer)
                if at == index and moves is most:
                    stats = self._allocator.stats()

        go(activations.before)
        for layer in self._layers(alive) if in_layer is None else range(activations.layers):
            go(activations.layer, layer)
        go(activations.after)
        assert stats is not None
        return stats

    def _layers(self, alive: dict[str, int]) -> Iterator[int]:
        """The layers that have to be gone through."""
        layers, allocator = self._activations.layers, self._allocator
        if not self._remembers:
            yield from range(layers)
            return
        first_at: dict[int, int] = {}  # address of the hidden state → the layer that found it there
        changes, layer = allocator.changes, 0
        while layer < layers:
            if allocator.changes != changes:
                changes = allocator.changes
                first_at.clear()
            earlier = first_at.setdefault(alive[BETWEEN_LAYERS], layer)
            if earlier < layer:
                # Whole rounds lead back to here: of the rest only what begins another round is to be seen.
                yield from range(layers - (layers - layer) % (layer - earlier), layers)
                return
            yield layer
            layer += 1
