"""The copies of one simulated engine between its device, host memory and disk, each direction one after the other.

As vLLM's transfers of offloaded blocks are (`SingleDirectionOffloadingHandler`): a transfer begins when the one before
in its direction has ended. So who copies at the same time waits for his turn, and time is not sliced. Copies that a
step waits for, of swapped and evicted blocks, take their turn behind those that run beside the steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from simpy.events import URGENT

from sim.engine.clock import Clock, Instant
from sim.engine.offload.moves import Move, write_move
from sim.engine.offload.settings import DiskSettings
from sim.engine.step_times import StepTimes
from sim.results.recorder import EventRecorder

_BEHIND_STEPS = 1 << 30  # at one instant a fetch takes its turn behind the copies that a step waits for


@dataclass(frozen=True)
class HostLinkSettings:
    """`block_bytes` of one KV block, all ranks; `disk` None: there is none."""

    block_bytes: int = 1
    disk: DiskSettings | None = None

    def read(self, blocks: int) -> float:
        """Seconds to read so many from disk."""
        assert self.disk is not None
        return blocks * self.block_bytes / self.disk.read_bandwidth

    def write(self, blocks: int) -> float:
        """Seconds to write so many to disk."""
        assert self.disk is not None
        return blocks * self.block_bytes / self.disk.write_bandwidth


NO_TIERS = HostLinkSettings()


class Told(Protocol):
    """The engine whose copies they are."""

    def moved(self, move: Move) -> None:
        """It is done."""

    def tend(self) -> None:
        """It is the time at which it wanted to be woken."""


class _Lane:
    """One direction: copies in a row."""

    def __init__(self) -> None:
        self._free_at = 0.0

    def take(self, now: float, seconds: float) -> float:
        """When a copy that is ready now, and takes so long alone, has ended."""
        self._free_at = max(now, self._free_at) + seconds
        return self._free_at


class HostLink:
    """A `sim.engine.offload.moves.Mover`."""

    def __init__(
        self,
        clock: Clock,
        replica: int,
        engine: Told,
        step_times: StepTimes,
        settings: HostLinkSettings,
        events: EventRecorder,
    ) -> None:
        self._clock = clock
        self._replica = replica
        self._engine = engine
        self._step_times = step_times
        self._settings = settings
        self._events = events
        self._out, self._into, self._disk_reads, self._disk_writes = _Lane(), _Lane(), _Lane(), _Lane()
        self._ahead: dict[Instant, None] = {}

    def begin(self, move: Move) -> None:
        now, blocks = self._clock.now, len(move.blocks.host)
        if move.kind == "fetch":
            self._at(now, lambda: self._fetch(move), _BEHIND_STEPS)
        elif move.kind == "write":
            self._at(self._out.take(now, self._step_times.swap(blocks, 0)), lambda: self._done(move, now))
        else:
            end = self._disk_writes.take(now, self._settings.write(len(move.disk.host)))
            self._at(end, lambda: self._done(move, now))

    def wake(self, time: float) -> None:
        # It keeps nobody waiting who would go home once all has ended.
        self._then(self._clock.watch(time, URGENT), self._engine.tend)

    def before_step(self, out: int, into: int) -> float:
        """Seconds that the step which begins now waits for so many blocks to leave the device, and then for so many to
        come to it."""
        now = at = self._clock.now
        if out:
            at = self._out.take(at, self._step_times.swap(out, 0))
        if into:
            at = self._into.take(at, self._step_times.swap(0, into))
        return at - now

    def stop(self) -> None:
        """The engine is no more."""
        for instant in self._ahead:
            self._clock.abandon(instant)
        self._ahead.clear()

    def _fetch(self, move: Move) -> None:
        now = self._clock.now
        if move.disk.host:
            end = self._disk_reads.take(now, self._settings.read(len(move.disk.host)))
            self._at(end, lambda: self._to_device(move, now))
        else:
            self._to_device(move, now)

    def _to_device(self, move: Move, begun: float) -> None:
        """What the disk had is in host memory."""
        end = self._into.take(self._clock.now, self._step_times.swap(0, len(move.blocks.host)))
        self._at(end, lambda: self._done(move, begun))

    def _done(self, move: Move, begun: float) -> None:
        write_move(self._events, self._replica, move, begun, self._clock.now - begun)
        self._engine.moved(move)

    def _at(self, time: float, then: Callable[[], None], priority: int = URGENT) -> None:
        self._then(self._clock.at(time, priority), then)

    def _then(self, instant: Instant, then: Callable[[], None]) -> None:
        self._ahead[instant] = None

        def happen(_: object) -> None:
            if instant in self._ahead:  # it did not stop before
                del self._ahead[instant]
                then()

        instant.callbacks.append(happen)
