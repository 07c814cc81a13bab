"""KV blocks on their way between the device, host memory and disk, beside the steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

from sim.engine.swap_space import BlockCopy

if TYPE_CHECKING:
    from sim.results.recorder import EventRecorder

NO_BLOCKS = BlockCopy((), ())


class DiskCopy(NamedTuple):
    """Places of blocks in host memory and in the disk's file, pair by pair."""

    host: Sequence[int]
    disk: Sequence[int]


NOT_ON_DISK = DiskCopy((), ())


@dataclass(eq=False, slots=True)
class Move:
    """What is copied, in this order: `disk` into host memory, then `blocks` to the device (fetch); `blocks` to host
    memory (write); `disk` from host memory (store). `request_id`: who waits for it, if anybody does."""

    kind: Literal["fetch", "write", "store"]
    blocks: BlockCopy = NO_BLOCKS
    disk: DiskCopy = NOT_ON_DISK
    request_id: int | None = None


class Mover(Protocol):
    """Whoever copies. Neither call may come back to the scheduler at once."""

    def begin(self, move: Move) -> None:
        """Begin with it, or queue it: `Scheduler.moved` when it is done."""

    def wake(self, time: float) -> None:
        """Have the scheduler asked for a step at `time`, even if nothing else happens: it may have something to
        move."""


def write_move(events: EventRecorder, replica: int, move: Move, begun: float, seconds: float) -> None:
    """A row of the events table."""
    events.append(
        begun,
        replica,
        f"kv_{move.kind}",
        request_id=move.request_id,
        seconds=seconds,
        amount=max(len(move.blocks.host), len(move.disk.host)),
        detail=("from disk" if move.disk.host else "from host") if move.kind == "fetch" else None,
    )
