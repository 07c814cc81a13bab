"""So many requests at once and no more. With as many as there are seats nobody ever waits."""

from sim.engine.request import Request
from sim.fleet.admission.admission import Hall
from sim.fleet.admission_settings import MaxOutstandingSettings


class MaxOutstanding:
    def __init__(self, settings: MaxOutstandingSettings, hall: Hall) -> None:
        self._settings = settings
        self._hall = hall

    def refuses(self, request: Request) -> str:
        settings, outstanding = self._settings, self._hall.outstanding()
        if settings.fleet is not None and outstanding >= settings.fleet:
            return f"max_outstanding: {outstanding} in the fleet"
        # Of a fleet that has no replica yet as many may wait as for one.
        replicas = max(1, self._hall.replicas())
        if settings.per_replica is not None and outstanding >= settings.per_replica * replicas:
            return f"max_outstanding: {outstanding} on {replicas} replicas"
        return ""
