"""Host work of a step that grows with what the engine's process has to look after.

A front end in the same process, per-session state that is walked every step, metrics that are labelled by session: all
run in the process that also launches the kernels. Where steps are scheduled ahead the device hides it, up to a point.
"""

from __future__ import annotations

from collections import OrderedDict

from pydantic import Field

from ground.spec import Spec
from sim.engine.plan import Plan
from sim.engine.request import Request
from sim.engine.step_costs import StepCost
from sim.results.recorder import EventRecorder


class HostWorkSettings(Spec):
    per_step: float = Field(default=0.0, ge=0, description="seconds of every step")
    per_running: float = Field(default=0.0, ge=0, description="seconds of a step for each request that runs")
    per_session: float = Field(default=0.0, ge=0, description="seconds of a step for each session that is known")
    forget_after: float | None = Field(
        default=None,
        gt=0,
        description="seconds without a request after which a session is forgotten; never if not given",
    )


class HostWork:
    """A cost of steps (`sim.engine.step_costs.CostSource`). A request without a session is one by itself."""

    def __init__(self, settings: HostWorkSettings, replica: int, events: EventRecorder) -> None:
        self._settings = settings
        self._replica = replica
        self._events = events
        self._busy: dict[str, int] = {}  # session → its requests under way
        self._idle: OrderedDict[str, float] = OrderedDict()  # session → since when
        self._running = 0
        self._cost = StepCost()

    @property
    def sessions(self) -> int:
        """Known now."""
        return len(self._busy) + len(self._idle)

    def begin(self, plan: Plan, now: float) -> StepCost:
        settings = self._settings
        if settings.forget_after is not None:
            while self._idle and next(iter(self._idle.values())) + settings.forget_after <= now:
                self._idle.popitem(last=False)
        running = plan.decodes + len(plan.chunks)
        seconds = settings.per_step + settings.per_running * running + settings.per_session * self.sessions
        self._cost = StepCost(host=seconds)
        return self._cost

    def end(self, start: float, steps: int) -> None:
        seconds = self._cost.host * steps
        if seconds:
            self._events.append(start, self._replica, "host", seconds=seconds, amount=self.sessions)

    def arrived(self, request: Request, now: float) -> None:
        session = _session(request)
        self._idle.pop(session, None)
        self._busy[session] = self._busy.get(session, 0) + 1

    def finished(self, request: Request, now: float) -> None:
        session = _session(request)
        self._busy[session] -= 1
        if not self._busy[session]:
            del self._busy[session]
            if request.session is not None:
                self._idle[session] = now


def _session(request: Request) -> str:
    return request.session if request.session is not None else f"request {request.request_id}"
