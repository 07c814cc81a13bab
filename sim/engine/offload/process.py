"""The simulated engine whose KV blocks leave the device and come back, by a choice that its step times tell or beside
its steps."""

from __future__ import annotations

from sim.engine.offload.foresight import foresee
from sim.engine.offload.host_link import HostLink, HostLinkSettings
from sim.engine.offload.moves import Move
from sim.engine.plan import Plan
from sim.engine.process import Engine


class OffloadingEngine(Engine):
    """The arguments are an `Engine`'s; before it takes requests it is to be connected."""

    _link: HostLink | None = None

    def connect(self, settings: HostLinkSettings) -> None:
        """What its blocks are copied over."""
        foresee(self.scheduler, self._step_times, settings.read)
        if self.scheduler.offload is not None:
            self._link = HostLink(self._clock, self._replica, self, self._step_times, settings, self._events)
            self.scheduler.offload.connect(self._link)

    def moved(self, move: Move) -> None:
        """Copies beside the steps are done."""
        matters = self.scheduler.moved(move)
        if matters or not self._idle:
            self._hear(matters)

    def tend(self) -> None:
        """Something is due to be moved."""
        self._hear(True)

    def stop(self) -> None:
        super().stop()
        if self._link is not None:
            self._link.stop()

    def _copies(self, plan: Plan) -> float:
        if self._link is None or not (plan.swapped_out or plan.swapped_in):
            return super()._copies(plan)
        out, into = (sum(len(copy.host) for copy in copies) for copies in (plan.swapped_out, plan.swapped_in))
        return self._link.before_step(out, into)
