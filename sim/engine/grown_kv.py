"""A KV cache of tensors that grow: keys and values of each request and layer, one token longer at each step.

So does Hugging Face's DynamicCache (`transformers/cache_utils.py`, `DynamicLayer.update`): the longer tensor is made by
concatenation while the shorter one is still alive, keys first. Sizes that never come back are what fragments the memory
of an allocator that keeps what was freed. The bytes that a concatenation copies are not counted as time.
"""

from __future__ import annotations

from collections.abc import Callable

from calibrate.model import ModelShape
from sim.engine.plan import Plan


class GrownKv:
    """Of one rank of `tp`, sequences one by one."""

    def __init__(self, model: ModelShape, tp: int = 1) -> None:
        rank = model.shard(tp)
        self._layers = model.layers
        self._token_bytes = rank.kv_heads * rank.head_dim * rank.dtype_bytes  # keys, or values, of one layer
        self.clear()

    def clear(self) -> None:
        """The process begins anew."""
        self._tokens: dict[int, int] = {}  # request_id → tokens that its tensors hold
        self._tensors: dict[int, list[int]] = {}  # their addresses: keys and values of layer 0, of layer 1, ...
        self._decoding: set[int] = set()
        self._growing: list[tuple[int, int]] = []  # requests of the step under way, and their tokens after it

    @property
    def tokens(self) -> int:
        """Held in all."""
        return sum(self._tokens.values())

    def begin(self, plan: Plan) -> None:
        """A step: who grows in it, and how long they get."""
        starved = {request.request_id for request in plan.starved}
        self._growing = [(one, self._tokens[one] + 1) for one in sorted(self._decoding - starved)]
        for chunk in plan.chunks:
            one = chunk.request.request_id
            self._growing.append((one, chunk.start + chunk.tokens))
            if chunk.last:
                self._decoding.add(one)
        for one, tokens in self._growing:
            self._tokens[one] = tokens

    def grow(self, layer: int, take: Callable[[int], int], give: Callable[[int], None]) -> None:
        """Of one layer, by `take` (bytes → address) and `give`."""
        for one, tokens in self._growing:
            tensors = self._tensors.setdefault(one, [])
            for at in (2 * layer, 2 * layer + 1):
                longer = take(tokens * self._token_bytes)
                if at < len(tensors):
                    give(tensors[at])
                    tensors[at] = longer
                else:
                    tensors.append(longer)

    def drop(self, request_id: int, give: Callable[[int], None]) -> None:
        """It was answered, aborted, or preempted: then it computes all of them anew."""
        self._decoding.discard(request_id)
        self._tokens.pop(request_id, None)
        for address in self._tensors.pop(request_id, ()):
            give(address)
