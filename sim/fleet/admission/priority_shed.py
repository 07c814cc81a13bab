"""The more saturated the fleet, the more urgent a request has to be.

The rule of the Gateway API Inference Extension, which llm-d runs: a sheddable request (negative priority) is dropped
while the pool's saturation is at least 1 (`pkg/epp/requestcontrol/admission.go`). Saturation is the mean over the
replicas of max(queue / 5, KV use / 0.8) (`saturationdetector/utilization`), or the requests in the pool over what all
replicas may have (`saturationdetector/concurrency`); without a replica it is 1. More levels are ours.
"""

from sim.engine.request import Request
from sim.fleet.admission.admission import Hall
from sim.fleet.admission_settings import PriorityShedSettings


class PriorityShed:
    def __init__(self, settings: PriorityShedSettings, hall: Hall) -> None:
        self._settings = settings
        self._hall = hall

    def refuses(self, request: Request) -> str:
        levels = self._settings.levels
        if request.priority >= levels[-1].below_priority:
            return ""
        saturation = self.saturation()
        for level in levels:
            if request.priority < level.below_priority and saturation >= level.saturation:
                return f"priority: {request.priority} at saturation {saturation:.3g}"
        return ""

    def saturation(self) -> float:
        settings, hall = self._settings, self._hall
        replicas = hall.replicas()
        if not replicas:
            return 1.0
        if settings.saturation == "concurrency":
            return hall.outstanding() / (settings.max_concurrency * replicas)
        return (
            sum(max(gauge.waiting / settings.queue_depth, gauge.kv_use / settings.kv_use) for gauge in hall.gauges())
            / replicas
        )
