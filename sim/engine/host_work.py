"""Host work of a step that grows with what the engine's process has to look after.

A front end in the same process, per-session state that is walked every step, metrics that are labelled by session: all
run in the process that also launches the kernels. Where steps are scheduled ahead the device hides it, up to a point.
"""

from __future__ import annotations

from collections import OrderedDict

from pydantic import Field

from ground.spec import Spec
from sim.engine.device_memory import DeviceMemory
from sim.engine.plan import Plan
from sim.engine.request import Request
from sim.engine.step_costs import StepCost
from sim.results.recorder import EventRecorder


class HostWorkSettings(Spec):
    per_step: float = Field(default=0.0, ge=0, le=1e6, description="seconds of every step")
    per_running: float = Field(default=0.0, ge=0, le=1e6, description="seconds of a step for each request that runs")
    per_session: float = Field(default=0.0, ge=0, le=1e6, description="seconds of a step for each known session")
    forget_after: float | None = Field(
        default=None,
        gt=0,
        description="seconds without a request after which a session is forgotten; never if not given",
    )


class HostWork:
    """A cost of steps (`sim.engine.step_costs.CostSource`).

    A session is known from the admission of its first request on; a request without one is one by itself. Who is
    forgotten is looked up where the batch changes. An engine that is started anew knows no idle session any more;
    those with requests under way are told to it again.
    """

    def __init__(
        self, settings: HostWorkSettings, replica: int, events: EventRecorder, memory: DeviceMemory | None = None
    ) -> None:
        """`memory`: for want of which the engine may be started anew."""
        self._settings = settings
        self._memory = memory
        self._starts = 1 if memory is None else memory.starts
        self._replica = replica
        self._events = events
        self._busy: dict[str, set[int]] = {}  # session → its requests under way
        self._idle: OrderedDict[str, float] = OrderedDict()  # session → since when
        self._changed = True  # the batch, since the step before
        self._decodes = 0
        self._cost = StepCost()

    @property
    def sessions(self) -> int:
        """Known now."""
        return len(self._busy) + len(self._idle)

    def begin(self, plan: Plan, now: float) -> StepCost:
        if self._memory is not None and self._memory.starts != self._starts:
            self._starts = self._memory.starts
            self._idle.clear()
            self._changed = True
        if self._changed or plan.chunks or plan.preempted or plan.decodes != self._decodes:
            self._changed, self._decodes = False, plan.decodes
            self._meet(plan)
            self._forget(now)
            settings = self._settings
            running = plan.decodes + len(plan.chunks)
            self._cost = StepCost(
                host=settings.per_step + settings.per_running * running + settings.per_session * self.sessions
            )
        return self._cost

    def end(self, start: float, steps: int) -> None:
        if self._cost.host:
            self._events.append(start, self._replica, "host", seconds=self._cost.host * steps, amount=self.sessions)

    def finished(self, request: Request, now: float) -> None:
        self._leave(request, now)

    def aborted(self, request: Request, now: float) -> None:
        if request.request_id in self._busy.get(_session(request), ()):
            self._leave(request, now)

    def _leave(self, request: Request, now: float) -> None:
        self._changed = True
        session = _session(request)
        under_way = self._busy[session]
        under_way.remove(request.request_id)
        if not under_way:
            del self._busy[session]
            if request.session is not None:
                self._idle[session] = now

    def _meet(self, plan: Plan) -> None:
        for chunk in plan.chunks:
            session = _session(chunk.request)
            self._idle.pop(session, None)
            self._busy.setdefault(session, set()).add(chunk.request.request_id)

    def _forget(self, now: float) -> None:
        limit = self._settings.forget_after
        while limit is not None and self._idle and next(iter(self._idle.values())) + limit <= now:
            self._idle.popitem(last=False)


def _session(request: Request) -> str:
    return request.session if request.session is not None else f"request {request.request_id}"
