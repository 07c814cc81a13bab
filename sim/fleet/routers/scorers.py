"""The replica with the largest weighted sum of scores (`sim.fleet.replica_scores`); of equals any, drawn.

llm-d's inference scheduler and its `max-score-picker`. What was sent where is remembered as in `prefix_aware`; queues
and KV use are the engines' own metrics, as of the last scrape.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from sim.engine.request import Request
from sim.fleet.load import Load, any_with
from sim.fleet.replica_scores import SCORERS, Candidates
from sim.fleet.routers.router import Router, RouterSetting
from sim.fleet.routers.sent_prefixes import SentPrefixes
from sim.fleet.routing_settings import ScorersSettings


class Scorers(Router):
    def __init__(self, setting: RouterSetting) -> None:
        super().__init__(setting)
        options = setting.options.scorers or ScorersSettings()
        self._threshold = options.load_threshold
        self._weighted = [(SCORERS[name], weight) for name, weight in options.weights.items()]
        self._sent = SentPrefixes(setting.kv_tokens) if "prefix" in options.weights else None
        self._last: dict[str, int] = {}  # session → the replica that had its last request
        self._replicas: list[int] = []

    def members(self, replicas: Sequence[int]) -> None:
        self._replicas = list(replicas)
        if self._sent is not None:
            self._sent.members(replicas)

    def choose(self, request: Request, load: Load) -> int:
        last = self._last.get(request.session, -1) if request.session is not None else -1
        candidates = Candidates(
            request,
            load.requests,
            load.gauges,
            partial(self._sent.matches, request.prefix_ids) if self._sent is not None else tuple,
            self._replicas.index(last) if last in self._replicas else None,
            self._threshold,
        )
        totals = [0.0] * len(self._replicas)
        for score, weight in self._weighted:
            totals = [total + weight * one for total, one in zip(totals, score(candidates), strict=True)]
        place = any_with(max(totals), totals, self.setting.random)
        if request.session is not None:
            self._last[request.session] = self._replicas[place]
        if self._sent is not None:
            self._sent.remember(place, request)
        return place
