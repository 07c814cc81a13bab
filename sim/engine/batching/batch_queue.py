"""The queue of an engine on which batches form: who comes gathers behind a window, and waits for a seat once it opens.

A lane opens when its window says so or its cap is reached, and stays open until all have gone through whom that was
for. They go in the order of the scheduling policy, as many as there are seats and memory; the first who finds none
keeps those behind him waiting. Who was preempted was in a batch and is shut out no more.

It has no clock. What it answers changes with time only at `opens_at`, of which it tells whoever watches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sized

from sim.engine.batching.batch_memory import BatchMemory
from sim.engine.batching.fixed_window import WindowSettings
from sim.engine.batching.static import StaticSettings
from sim.engine.batching.window import Window
from sim.engine.ordering.waiting_queue import WaitingQueue
from sim.engine.request import Request


class _Lane:
    """Those who gather behind one window."""

    def __init__(self, window: Window, queue: WaitingQueue, cap: int) -> None:
        self.queue = queue
        self._window = window
        self._cap = cap
        self._came: dict[Request, None] = {}  # the same, as they came

    def add(self, request: Request) -> None:
        self._window.arrived(request)
        self._came[request] = None
        self.queue.push(request)

    def pop(self) -> Request:
        request = self.queue.pop()
        del self._came[request]
        return request

    def remove(self, request: Request) -> None:
        self.queue.remove(request)
        del self._came[request]

    @property
    def opens_at(self) -> float:
        """inf: nobody is there."""
        if not self._came:
            return math.inf
        opens = self._window.opens(next(iter(self._came)).arrival)
        return opens if len(self._came) < self._cap else min(opens, next(reversed(self._came)).arrival)


class BatchQueue:
    """A `WaitingQueue` whose `head` is one of a batch. Call `form` before each step is scheduled."""

    def __init__(
        self,
        settings: StaticSettings | WindowSettings,
        make_window: Callable[[], Window],
        make_queue: Callable[[], WaitingQueue],
        batch: WaitingQueue,
        running: Sized,
        seats: int,
        memory: BatchMemory | None,
    ) -> None:
        """`settings`: a policy's. `make_queue`, `batch`: where those wait who gather, in each lane, and who may join.
        `running`: those who run, of whom there are `seats` at most. Without `memory` there is no cap by it."""
        self._cap: int = seats if settings.cap is None else settings.cap
        self._waits_for_idle: bool = settings.joins == "idle"
        self._has_lanes: bool = settings.lanes
        self._make_lane = lambda: _Lane(make_window(), make_queue(), self._cap)
        self._batch = batch
        self._running = running
        self._seats = seats
        self._memory = memory
        self._lanes: dict[int, _Lane] = {}  # by priority, the most urgent first
        self._lane_of: dict[Request, _Lane] = {}  # of all who gather
        self._refused: tuple[_Lane, Request] | None = None  # for whom the last `form` found no memory
        self._tell: Callable[[float | None], None] = lambda opens_at: None
        self.opens_at: float | None = None  # when `form` may next let somebody in; None: not before anybody leaves

    def watch(self, tell: Callable[[float | None], None]) -> None:
        """`tell` is called with every `opens_at`; one that is past means now."""
        self._tell = tell

    def form(self, now: float) -> None:
        """A step is scheduled at `now`: let those in who may join it."""
        self._refused = None
        room = self._room
        for lane in self._lanes.values():
            while self._refused is None and room > 0 and lane.opens_at <= now:
                room -= self._let_in(lane, min(self._cap, room, len(lane.queue)))
        self._look_ahead()

    @property
    def _room(self) -> int:
        """Seats for those who gather."""
        inside = len(self._running) + len(self._batch)
        if self._waits_for_idle:
            return 0 if inside else min(self._cap, self._seats)
        return self._seats - inside

    def _let_in(self, lane: _Lane, most: int) -> int:
        """So many of a lane at most; returns how many."""
        for count in range(most):
            head = lane.queue.head()
            assert head is not None
            if self._memory is not None and not self._memory.let_in(head):
                self._refused = lane, head
                return count
            del self._lane_of[head]
            self._batch.push(lane.pop())
        return most

    def _look_ahead(self) -> None:
        """Set `opens_at`: of the lanes before the one whose first was refused, if he still is its first."""
        opens_at = math.inf
        last, refused = self._refused or (None, None)
        for lane in self._lanes.values() if self._room > 0 else ():
            if lane is last and len(lane.queue) and lane.queue.head() is refused:
                break
            opens_at = min(opens_at, lane.opens_at)
        self.opens_at = None if opens_at == math.inf else opens_at
        self._tell(self.opens_at)

    def leaves(self, request: Request) -> None:
        """It was admitted, has ended and given back its blocks."""
        if self._memory is not None:
            self._memory.leaves(request)

    # As any queue.

    def push(self, request: Request) -> None:
        priority = request.priority if self._has_lanes else 0
        lane = self._lanes.get(priority)
        if lane is None:
            self._lanes[priority] = lane = self._make_lane()
            self._lanes = dict(sorted(self._lanes.items(), reverse=True))
        lane.add(request)
        self._lane_of[request] = lane
        self._look_ahead()

    def put_back(self, request: Request) -> None:
        self._batch.put_back(request)

    def head(self) -> Request | None:
        return self._batch.head() if len(self._batch) else None

    def pop(self) -> Request:
        return self._batch.pop()

    def remove(self, request: Request) -> bool:
        lane = self._lane_of.pop(request, None)
        if lane is not None:
            lane.remove(request)
            self._look_ahead()
            return True
        if not self._batch.remove(request):
            return False
        self.leaves(request)
        return True

    def place(self, request: Request) -> tuple[float, ...]:
        lane = self._lane_of.get(request)
        if lane is None:
            return (0, *self._batch.place(request))
        return (1, -request.priority if self._has_lanes else 0, *lane.queue.place(request))

    def __len__(self) -> int:
        return len(self._batch) + len(self._lane_of)
