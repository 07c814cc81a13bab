"""Nobody joins a queue that is too long."""

from sim.engine.request import Request
from sim.fleet.admission.admission import Hall
from sim.fleet.admission_settings import QueueLimitSettings


class QueueLimit:
    """The engines' queues are as of the last scrape, so several may join between two."""

    def __init__(self, settings: QueueLimitSettings, hall: Hall) -> None:
        self._limit = settings.waiting
        self._hall = hall

    def refuses(self, request: Request) -> str:
        waiting = self._hall.held() + sum(gauge.waiting for gauge in self._hall.gauges())
        return f"queue_limit: {waiting} waiting" if waiting >= self._limit else ""
