"""Nobody comes in while the KV caches are nearly full, on the mean of the replicas."""

from sim.engine.request import Request
from sim.fleet.admission.admission import Hall
from sim.fleet.admission_settings import KvUseSettings


class KvUse:
    def __init__(self, settings: KvUseSettings, hall: Hall) -> None:
        self._threshold = settings.threshold
        self._hall = hall

    def refuses(self, request: Request) -> str:
        gauges = self._hall.gauges()
        if not gauges:  # nothing is held where nobody is
            return ""
        use = sum(gauge.kv_use for gauge in gauges) / len(gauges)
        return f"kv_use: {use:.3f} held" if use >= self._threshold else ""
