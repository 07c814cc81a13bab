"""A rate in the long run, and a burst at once: each request takes from a bucket that fills steadily."""

from sim.engine.request import Request
from sim.fleet.admission.admission import Hall
from sim.fleet.admission_settings import TokenBucketSettings


class TokenBucket:
    """A request that costs more than the whole bucket is always turned away."""

    def __init__(self, settings: TokenBucketSettings, hall: Hall) -> None:
        self._settings = settings
        self._hall = hall
        self._level = settings.burst
        self._since = 0.0

    def refuses(self, request: Request) -> str:
        settings, now = self._settings, self._hall.now()
        self._level = min(settings.burst, self._level + (now - self._since) * settings.rate)
        self._since = now
        cost = 1 if settings.counts == "requests" else request.prompt_tokens + request.output_tokens
        if cost > self._level:
            return f"token_bucket: {self._level:.6g} left of {settings.burst:g}"
        self._level -= cost
        return ""
