"""KV blocks between device and pinned host memory, on a stream of their own.

A block's keys and values lie apart, one piece a layer. They are gathered on the device, so that blocks that are
neighbours in host memory cross the link in one copy.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from calibrate.decoder import Decoder

# Device memory in which blocks are gathered: long enough copies, and little taken from the cache.
_STAGING_BYTES = 1 << 26


@dataclass(frozen=True)
class Swap:
    """Blocks on their way: how many bytes, and what tells their arrival (None: they are there).

    `usable` comes as early or earlier: from then on a step may overwrite the blocks sent out, or read those fetched.
    `begun`: it was their turn; `host_seconds`: what they took, where the host itself has copied them.
    """

    bytes: int
    arrived: torch.cuda.Event | None
    usable: torch.cuda.Event | None
    begun: torch.cuda.Event | None = None
    host_seconds: float | None = None

    @property
    def ended(self) -> bool:
        """Whether the blocks have arrived."""
        return self.arrived is None or self.arrived.query()

    @property
    def seconds(self) -> float | None:
        """From their turn to their arrival; None while they are under way."""
        if self.begun is None or self.arrived is None:
            return self.host_seconds
        return float(self.begun.elapsed_time(self.arrived)) / 1e3 if self.ended else None

    def before_compute(self) -> None:
        """Steps launched from now on begin when the device blocks are usable; the host does not wait."""
        if self.usable is not None:
            torch.cuda.current_stream().wait_event(self.usable)

    def wait(self) -> None:
        """The host waits until the blocks have arrived."""
        if self.arrived is not None:
            self.arrived.synchronize()


class BlockSwap:
    """Room for `host_blocks` KV blocks in host memory, pinned where there is a GPU, and the copies to and from it.

    Swaps run one after the other, and take what the steps launched before them wrote. Steps launched after one do not
    wait for it: before one may touch its blocks, the caller calls `Swap.before_compute`. (torch rounds pinned memory up
    to a power of two.)
    """

    def __init__(self, decoder: Decoder, host_blocks: int) -> None:
        self._device = decoder.device
        self._stream = torch.cuda.Stream(decoder.device) if decoder.device.type == "cuda" else None
        self._caches = [cache.view(decoder.padding_block + 1, -1) for cache in decoder.caches]
        values = self._caches[0].shape[1]
        pinned = self._stream is not None
        self._host = torch.empty(host_blocks, len(self._caches), values, dtype=self._caches[0].dtype, pin_memory=pinned)
        self.block_bytes = self._host.element_size() * len(self._caches) * values
        # The same memory, (host_blocks, block_bytes) of bytes, for who reads or writes it beside the device.
        self.memory = self._host.view(torch.uint8).reshape(host_blocks, self.block_bytes).numpy()

    @torch.inference_mode()
    def swap_out(self, device_blocks: Sequence[int], host_blocks: Sequence[int]) -> Swap:
        """Copy device blocks into host blocks, pair by pair.

        Raises:
            ValueError: the lists differ in length.
        """
        steps, since = self._event(), time.perf_counter()
        gathered = None
        with self._on_stream(behind=steps):
            begun = self._event()
            for on_device, on_host in self._parts(device_blocks, host_blocks):
                blocks = self._indices(on_device)
                staged = torch.stack([cache.index_select(0, blocks) for cache in self._caches], dim=1)
                gathered = self._event()
                for first, last in _runs(on_host):
                    target = self._host[on_host[first] : on_host[first] + last - first]
                    target.copy_(staged[first:last], non_blocking=True)
            return self._swap(len(device_blocks), since, arrived=self._event(), usable=gathered, begun=begun)

    @torch.inference_mode()
    def swap_in(self, host_blocks: Sequence[int], device_blocks: Sequence[int]) -> Swap:
        """Copy host blocks into device blocks, pair by pair.

        Raises:
            ValueError: the lists differ in length.
        """
        steps, since = self._event(), time.perf_counter()
        with self._on_stream(behind=None):
            begun = self._event()
            for on_device, on_host in self._parts(device_blocks, host_blocks):
                blocks = self._indices(on_device)
                staged = self._caches[0].new_empty(len(on_host), *self._host.shape[1:])
                for first, last in _runs(on_host):
                    source = self._host[on_host[first] : on_host[first] + last - first]
                    staged[first:last].copy_(source, non_blocking=True)
                # Not sooner: the blocks cross the link beside the steps, which may still use the device blocks.
                if self._stream is not None:
                    self._stream.wait_event(steps)
                for layer, cache in enumerate(self._caches):
                    cache.index_copy_(0, blocks, staged[:, layer])
            arrived = self._event()
            return self._swap(len(device_blocks), since, arrived=arrived, usable=arrived, begun=begun)

    def _swap(self, blocks: int, since: float, **events: torch.cuda.Event | None) -> Swap:
        seconds = None if self._stream is not None else time.perf_counter() - since
        return Swap(blocks * self.block_bytes, host_seconds=seconds, **events)

    def _on_stream(self, *, behind: torch.cuda.Event | None) -> AbstractContextManager[object]:
        """The swaps' own stream, from here on behind an event of another one."""
        if self._stream is None:
            return nullcontext()
        if behind is not None:
            self._stream.wait_event(behind)
        return torch.cuda.stream(self._stream)

    def _event(self) -> torch.cuda.Event | None:
        """Tells when all that the current stream holds by now is done."""
        if self._stream is None:
            return None
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _parts(
        self, device_blocks: Sequence[int], host_blocks: Sequence[int]
    ) -> Iterator[tuple[Sequence[int], Sequence[int]]]:
        """The two lists, cut into what fits the staging memory."""
        if len(device_blocks) != len(host_blocks):
            raise ValueError(f"{len(device_blocks)} device and {len(host_blocks)} host blocks; expected as many")
        length = max(1, _STAGING_BYTES // self.block_bytes)
        for first in range(0, len(device_blocks), length):
            yield device_blocks[first : first + length], host_blocks[first : first + length]

    def _indices(self, blocks: Sequence[int]) -> torch.Tensor:
        return torch.tensor(blocks, pin_memory=self._stream is not None).to(self._device, non_blocking=True)


def _runs(blocks: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Where in the list neighbours stand beside each other: from, up to."""
    first = 0
    for i in range(1, len(blocks) + 1):
        if i == len(blocks) or blocks[i] != blocks[i - 1] + 1:
            yield first, i
            first = i
