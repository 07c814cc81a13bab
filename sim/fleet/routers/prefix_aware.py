"""The replica that was sent the longest part of this prompt before, unless the load is out of balance.

The rule and its thresholds are those of the SGLang router's `cache_aware` policy, which vLLM's router has too: with
more than 64 requests and more than 1.5 times as many on the busiest replica as on the idlest, the idlest is chosen;
otherwise the longest match if it covers more than 0.3 of the prompt, else the idlest. The router does not look into the
engines: it remembers what it sent where (`sent_prefixes.py`).
"""

from collections.abc import Sequence

from sim.engine.request import Request
from sim.fleet.load import Load, least
from sim.fleet.routers.router import Router, RouterSetting
from sim.fleet.routers.sent_prefixes import SentPrefixes
from sim.fleet.routing_settings import PrefixAwareSettings


class PrefixAware(Router):
    def __init__(self, setting: RouterSetting) -> None:
        super().__init__(setting)
        self._options = setting.options.prefix_aware or PrefixAwareSettings()
        self._sent = SentPrefixes(setting.kv_tokens)

    def members(self, replicas: Sequence[int]) -> None:
        self._sent.members(replicas)

    def choose(self, request: Request, load: Load) -> int:
        ids, outstanding, options = request.prefix_ids, load.requests, self._options
        low, high = min(outstanding), max(outstanding)
        unbalanced = high - low > options.balance_absolute and high > options.balance_relative * low
        longest = 0
        if len(ids) and not unbalanced:
            longest, place = self._sent.least_of_longest(ids, outstanding)
        if longest <= options.match_threshold * len(ids):
            place = least(outstanding)
        self._sent.remember(place, request)
        return place
