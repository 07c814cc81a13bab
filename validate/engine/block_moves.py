"""The copies beside the steps of the real engine, between its device, pinned host memory and a file on disk.

Copies to and from the device run on a stream of their own, in order; a file is read and written by a thread, in order
too. On a CPU there is no such stream: a copy to or from the device's blocks then ends before the step goes on.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Protocol

from calibrate.block_file import BlockFile
from calibrate.block_swap import BlockSwap, Swap
from sim.engine.offload.moves import Move, Mover
from validate.engine.clock import Clock

_PAUSE = 2e-5  # seconds between two looks at copies under way, where there is nothing else to do


@dataclass(frozen=True)
class Copied:
    """What a move took: from when it could begin until it was found done, and the seconds of its copies themselves."""

    move: Move
    begun: float
    seconds: float
    copying: float
    bytes: int


class TierMover(Mover, Protocol):
    """What the engine needs of whoever moves blocks beside its steps."""

    @property
    def busy(self) -> bool:
        """Whether anything is asked for or under way."""

    def asked(self) -> Sequence[Move]:
        """Fetches that were asked for since this was last called, for the caller to `start`."""

    def start(self, moves: Sequence[Move]) -> None:
        """Nothing that they overwrite is needed any more by a step that is launched from now on."""

    def ended(self) -> Sequence[Copied]:
        """What is done, each once."""

    def rest(self, until: float | None) -> None:
        """Wait until something is done, it is the time for which the scheduler wanted to be woken, or `until`."""


@dataclass
class _UnderWay:
    move: Move
    begun: float
    file: Future[float] | None = None
    swap: Swap | None = None
    copying: float = 0.0  # seconds of copies that have ended


class BlockMoves:
    """A `TierMover`."""

    def __init__(self, swap: BlockSwap, disk: BlockFile | None, clock: Clock) -> None:
        self._swap = swap
        self._disk = disk
        self._clock = clock
        self._thread = ThreadPoolExecutor(1) if disk is not None else None
        self._asked: list[Move] = []
        self._under_way: list[_UnderWay] = []
        self._done: list[Copied] = []
        self._wakes: list[float] = []

    def begin(self, move: Move) -> None:
        if move.kind == "fetch":
            self._asked.append(move)  # not before the step has saved what it overwrites
        else:
            self.start([move])

    def wake(self, time: float) -> None:
        heappush(self._wakes, time)

    @property
    def busy(self) -> bool:
        return bool(self._asked or self._under_way or self._done)

    def asked(self) -> Sequence[Move]:
        asked, self._asked = self._asked, []
        return asked

    def start(self, moves: Sequence[Move]) -> None:
        for move in moves:
            under_way = _UnderWay(move, self._clock.now())
            self._under_way.append(under_way)
            if move.disk.host:
                assert self._thread is not None
                under_way.file = self._thread.submit(self._with_file, move)
            else:
                self._with_device(under_way)

    def ended(self) -> Sequence[Copied]:
        self._look()
        done, self._done = self._done, []
        return done

    def rest(self, until: float | None) -> None:
        while self._wakes and self._wakes[0] <= self._clock.now():
            heappop(self._wakes)
        if self._wakes:
            until = self._wakes[0] if until is None else min(until, self._wakes[0])
        if not self._under_way and not self._done and until is not None:
            self._clock.wait_until(until)
        while not self._done:
            self._look()
            if until is not None and self._clock.now() >= until:
                return
            time.sleep(_PAUSE)

    def close(self) -> None:
        if self._thread is not None:
            self._thread.shutdown()
        if self._disk is not None:
            self._disk.close()

    def _with_file(self, move: Move) -> float:
        """In the thread; seconds."""
        assert self._disk is not None
        begun = time.perf_counter()
        copy = self._disk.read if move.kind == "fetch" else self._disk.write
        copy(self._swap.memory, move.disk.host, move.disk.disk)
        return time.perf_counter() - begun

    def _with_device(self, under_way: _UnderWay) -> None:
        blocks = under_way.move.blocks
        if under_way.move.kind == "write":
            under_way.swap = self._swap.swap_out(blocks.device, blocks.host)
        else:
            under_way.swap = self._swap.swap_in(blocks.host, blocks.device)

    def _look(self) -> None:
        """Take each as far as it has come."""
        still = []
        for under_way in self._under_way:
            if under_way.file is not None and under_way.file.done():
                under_way.copying += under_way.file.result()
                under_way.file = None
                if under_way.move.kind == "fetch":
                    self._with_device(under_way)
            if under_way.file is not None or (under_way.swap is not None and not under_way.swap.ended):
                still.append(under_way)
            else:
                self._done.append(self._copied(under_way))
        self._under_way = still

    def _copied(self, under_way: _UnderWay) -> Copied:
        move, swap = under_way.move, under_way.swap
        copying = under_way.copying + ((swap.seconds or 0.0) if swap is not None else 0.0)
        size = self._swap.block_bytes * max(len(move.blocks.host), len(move.disk.host))
        return Copied(move, under_way.begun, self._clock.now() - under_way.begun, copying, size)
