"""The offload policy of one engine: which KV blocks go to host memory and disk, and which come back.

The tiers hold copies: what is fetched stays there, and what is written stays on the device until it is evicted. The
rules are those of vLLM's OffloadingConnector (`vllm/distributed/kv_transfer/kv_connector/v1/offloading/scheduler.py`):

- A request whose prefix goes on in a tier where the device's ends waits outside the batch while its blocks are copied.
  Who wants blocks that are on their way already waits for them.
- A write leaves out what the tier has. A request that has ended keeps its blocks until they have been written.
- A block leaves a tier by LRU or ARC; one that is being read or written does not.

A block that has been written to host memory is stored on disk too, where there is a tier for it, so that it can leave
host memory at any time; what is fetched from disk comes by way of host memory, and stays there (vLLM's
`TieringOffloadingManager`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from sim.engine.block_pool import Hit, Holding
from sim.engine.kv_pool import KvPool
from sim.engine.offload.evicting_pool import EvictingPool
from sim.engine.offload.idle_sessions import IdleSessions
from sim.engine.offload.moves import DiskCopy, Move, Mover
from sim.engine.offload.names import block_names
from sim.engine.offload.predicted import Predicted
from sim.engine.offload.settings import KvOffloadSettings
from sim.engine.offload.tier import Tier
from sim.engine.plan import Plan
from sim.engine.request import Request
from sim.engine.swap_space import BlockCopy


@dataclass(slots=True)
class Found:
    """Blocks of a prefix that a tier has, from block `first` on. `on_disk`: those that only the disk has."""

    first: int
    names: list[int] = field(default_factory=list)
    on_disk: list[int] = field(default_factory=list)
    coming: bool = False  # one of them is on its way to the device: wait for it


@dataclass(slots=True)
class _Task:
    """What is under way: the names that are pinned for it, and who holds the blocks on the device meanwhile."""

    names: Sequence[int]  # that it writes, or reads of host memory
    from_disk: Sequence[int] = ()
    holding: Holding | None = None
    request: Request | None = None  # who waits for it
    tokens: int = 0  # that are there once it is done


class KvOffload:
    """`connect` says who copies. Where the settings ask what is cheaper, `predicted` must be given too."""

    def __init__(self, settings: KvOffloadSettings, pool: KvPool, block_size: int, first_host_block: int) -> None:
        """`first_host_block`: those before are of the `SwapSpace`."""
        self.settings = settings
        self.host = Tier(settings.host_blocks, settings.eviction, first=first_host_block)
        self.disk = Tier(settings.disk.blocks, settings.eviction) if settings.disk is not None else None
        self.predicted: Predicted | None = None
        self.unsettled = False  # whether the next step may admit whom the last one refused, though nobody left
        self._mover: Mover | None = None
        self._pool = pool
        self._size = block_size
        self._tasks: dict[Move, _Task] = {}
        self._coming: set[int] = set()  # names on their way to the device, until they are cached there
        self._coming_for: dict[Request, Sequence[int]] = {}
        self._copied: dict[Plan, Sequence[int]] = {}  # names that are written before a step
        self._arrived: list[_Task] = []  # prefetched, and not cached yet
        self._idle = IdleSessions(settings)

    def connect(self, mover: Mover) -> None:
        self._mover = mover

    # What waits, and what is fetched for it.

    def arrived(self, request: Request) -> None:
        """A request came; of its session it is the next turn."""
        self._idle.ended(request)

    def find(self, request: Request, hit: Hit) -> Found | None:
        """What the tiers have of a waiting request behind its `hit`; None where nothing is to be fetched."""
        if request.swapped is not None or hit.resumed:
            return None
        found = self._look_up(request.holding, hit, request.target)
        if not found.names or (not found.coming and not self._fetches(found)):
            return None
        return found

    def refused(self, request: Request, hit: Hit) -> None:
        """It waits on: for blocks, or for copies that are on their way. It may be found to have nothing to fetch, and
        to need less, once the end of its `hit` is evicted, unless the tiers have all of that."""
        names = block_names(request.holding, 0, hit.tokens // self._size)
        self.unsettled = bool(names) and (self.settings.fetch != "always" or not all(map(self._readable, names)))

    def fetch(self, request: Request, found: Found) -> None:
        """The request holds the blocks of its hit, and more are free: for its whole prompt, so that nothing can keep it
        from being computed once the blocks have come."""
        self._pool.hold(request.holding, request.target)
        self.used(request)
        request.computed = (found.first + len(found.names)) * self._size
        self._coming_for[request] = found.names
        self._begin_fetch(found, _Task(found.names, found.on_disk, request=request), request.holding)

    def used(self, request: Request) -> None:
        """It was admitted: count that its prefix was asked for."""
        names = block_names(request.holding, 0, (request.target - 1) // self._size)
        self.host.touch(names)
        if self.disk is not None:
            self.disk.touch(names)

    def joined(self, request: Request) -> None:
        """It has its blocks, and is computed from this step on."""
        self._coming.difference_update(self._coming_for.pop(request))
        self._pool.cache_full_blocks(request.holding, request.computed)
        request.holding.cached_anew = 0  # they were fetched, not computed

    def dropped(self, request: Request) -> None:
        """It left before it was computed."""
        self._coming.difference_update(self._coming_for.pop(request, ()))

    # What is written.

    def keeps(self, request: Request, now: float) -> bool:
        """A request has ended; whether it holds its blocks until they have been written (else the caller releases
        them)."""
        tokens = request.prompt_tokens + request.output_tokens - 1
        for time in self._idle.answered(request, now, tokens):
            assert self._mover is not None
            self._mover.wake(time)
        return self.settings.write == "on_release" and self._write(request.holding, tokens)

    def preempted(self, request: Request, tokens: int, plan: Plan) -> None:
        """A request that has computed so many tokens is about to lose its blocks: they go out before the step."""
        if self.settings.write in ("on_preemption", "on_release"):
            full = tokens // self._size
            table = request.holding.block_table()
            self._save(plan, list(zip(block_names(request.holding, 0, full), table, strict=False)))

    def planned(self, plan: Plan) -> None:
        """The scheduler has decided on a step: what it overwrites goes out before it."""
        if isinstance(self._pool, EvictingPool) and self._pool.evicted:
            evicted, self._pool.evicted = self._pool.evicted, []
            evicted.reverse()  # what was evicted last is to leave the tier last
            self._save(plan, evicted)

    @property
    def overwrites(self) -> bool:
        """Whether something was evicted that the next step must save."""
        return isinstance(self._pool, EvictingPool) and bool(self._pool.evicted)

    def completed(self, plan: Plan) -> None:
        """A step has ended, and with it the copies before it."""
        if names := self._copied.pop(plan, ()):
            self._on_host(names)

    def free_in_leap(self) -> int:
        """How many blocks decoding requests may take, one step after the other, with nothing to save before a step."""
        if not isinstance(self._pool, EvictingPool):
            return self._pool.free
        return self._pool.free_before_loss(self.host)

    def tend(self, now: float, *, crowded: bool) -> None:
        """A step is scheduled at `now`: do what has become due. `crowded`: others wait for blocks."""
        self.unsettled = False
        if isinstance(self._pool, EvictingPool):
            self._pool.evicted.clear()  # by the steps of a leap, which lose only what is saved (`free_in_leap`)
        for task in self._arrived:
            assert task.holding is not None
            self._coming.difference_update(task.names)
            self._pool.cache_full_blocks(task.holding, task.tokens)
            self._pool.release(task.holding)
        self._arrived.clear()
        for holding, tokens in self._idle.to_write(now):
            self._write_idle(holding, tokens)
        for holding, tokens in self._idle.to_fetch(now):
            if not crowded:
                self._prefetch(holding, tokens)

    def moved(self, move: Move) -> tuple[bool, Request | None]:
        """It is done; whether the next step has something to do because of it, and who waited for it."""
        task = self._tasks.pop(move)
        if move.kind == "store":
            assert self.disk is not None
            self.disk.written(task.names)
            self.host.unpin(task.names)
        elif move.kind == "write":
            assert task.holding is not None
            self._on_host(task.names)
            self._pool.release(task.holding)
        else:
            from_disk = set(task.from_disk)
            self.host.unpin([name for name in task.names if name not in from_disk])
            if self.disk is not None:
                self.host.written(task.from_disk)
                self.disk.unpin(task.from_disk)
            if task.holding is not None:
                self._arrived.append(task)
                return True, None
        return False, task.request

    # How.

    def _look_up(self, holding: Holding, hit: Hit, tokens: int) -> Found:
        """As many blocks as can be read and find a place in host memory, but for the last token's."""
        found = Found(hit.tokens // self._size)
        places = self.host.unpinned
        for name in block_names(holding, found.first, (tokens - 1) // self._size):
            on_host = self.host.can_read(name)
            if not on_host and (name in self.host or self.disk is None or not self.disk.can_read(name)):
                break
            places -= not self.host.is_pinned(name)
            if places < 0:
                break
            found.names.append(name)
            if not on_host:
                found.on_disk.append(name)
            found.coming = found.coming or name in self._coming
        return found

    def _readable(self, name: int) -> bool:
        return self.host.can_read(name) or (self.disk is not None and self.disk.can_read(name))

    def _fetches(self, found: Found) -> bool:
        if self.settings.fetch == "always":
            return True
        assert self.predicted is not None
        start, count = found.first * self._size, len(found.names)
        copies = self.predicted.fetch(count, len(found.on_disk))
        return copies < self.predicted.recompute(start, start + count * self._size)

    def _begin_fetch(self, found: Found, task: _Task, holding: Holding) -> None:
        self._coming.update(found.names)
        on_disk = set(found.on_disk)
        self.host.pin([name for name in found.names if name not in on_disk])
        disk = DiskCopy((), ())
        if self.disk is not None and on_disk:
            self.disk.pin(found.on_disk)
            places = self.host.make_place(found.on_disk)
            assert len(places) == len(found.on_disk)  # as was counted when they were found
            disk = DiskCopy(places, [self.disk.place_of(name) for name in found.on_disk])
        table = holding.block_table()[found.first : found.first + len(found.names)]
        blocks = BlockCopy(table, [self.host.place_of(name) for name in found.names])
        self._begin(Move("fetch", blocks, disk, task.request.request_id if task.request else None), task)

    def _write(self, holding: Holding, tokens: int) -> bool:
        """Begin to write what host memory lacks of the first `tokens` tokens; whether there is anything."""
        full = tokens // self._size
        table = holding.block_table()
        missing = [
            (name, block)
            for name, block in zip(block_names(holding, 0, full), table, strict=False)
            if name not in self.host
        ]
        names = [name for name, _ in missing]
        places = self.host.make_place(names)
        if not places:
            return False
        names = names[: len(places)]
        blocks = BlockCopy([block for _, block in missing[: len(places)]], places)
        self._begin(Move("write", blocks), _Task(names, holding=holding))
        return True

    def _write_idle(self, holding: Holding, tokens: int) -> None:
        """The same of what the device still has of an idle session."""
        hit = self._pool.find(holding, tokens + 1)
        if hit.tokens and self._pool.admit(holding, hit, hit.tokens) and not self._write(holding, hit.tokens):
            self._pool.release(holding)

    def _prefetch(self, holding: Holding, tokens: int) -> None:
        hit = self._pool.find(holding, tokens + 1)
        found = self._look_up(holding, hit, tokens + 1)
        if not found.names or found.coming or not self._fetches(found):
            return
        tokens = (found.first + len(found.names)) * self._size
        if self._pool.admit(holding, hit, hit.tokens, tokens):
            self._pool.hold(holding, tokens)
            self._begin_fetch(found, _Task(found.names, found.on_disk, holding, tokens=tokens), holding)

    def _save(self, plan: Plan, lost: Sequence[tuple[int, int]]) -> None:
        """Blocks, by name and where they lie on the device, that host memory lacks go out before a step."""
        missing = {name: block for name, block in lost if name not in self.host}
        places = self.host.make_place(list(missing))
        if places:
            names = list(missing)[: len(places)]
            plan.swapped_out = [*plan.swapped_out, BlockCopy([missing[name] for name in names], places)]
            self._copied[plan] = [*self._copied.get(plan, ()), *names]

    def _on_host(self, names: Sequence[int]) -> None:
        """They have been written: the disk gets them too."""
        self.host.written(names)
        if self.disk is None:
            return
        names = [name for name in names if name not in self.disk]
        places = self.disk.make_place(names)
        if places:
            names = names[: len(places)]
            self.host.pin(names)
            on_host = [self.host.place_of(name) for name in names]
            self._begin(Move("store", disk=DiskCopy(on_host, places)), _Task(names))

    def _begin(self, move: Move, task: _Task) -> None:
        assert self._mover is not None
        self._tasks[move] = task
        self._mover.begin(move)
