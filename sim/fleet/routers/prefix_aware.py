"""The replica that was sent the longest part of this prompt before, unless the load is out of balance.

The rule and its thresholds are those of the SGLang router's `cache_aware` policy: with more than 64 requests and more
than 1.5 times as many on the busiest replica as on the idlest, the idlest is chosen; otherwise the longest match if it
covers more than 0.3 of the prompt, else the idlest. The router does not look into the engines: it remembers what
it sent where, as many tokens a replica as its KV pool holds, least recently used forgotten first.
"""

from collections import OrderedDict
from collections.abc import Sequence

from sim.engine.request import Request
from sim.fleet.load import Load, least
from sim.fleet.routers.router import Router, RouterSetting

MATCH_THRESHOLD = 0.3
BALANCE_ABSOLUTE = 64
BALANCE_RELATIVE = 1.5


class PrefixAware(Router):
    def __init__(self, setting: RouterSetting) -> None:
        super().__init__(setting)
        self._by_replica: dict[int, OrderedDict[int, None]] = {}
        self._sent: list[OrderedDict[int, None]] = []  # the same by place

    def members(self, replicas: Sequence[int]) -> None:
        self._by_replica = {replica: self._by_replica.get(replica, OrderedDict()) for replica in replicas}
        self._sent = list(self._by_replica.values())

    def choose(self, request: Request, load: Load) -> int:
        ids, outstanding = request.prefix_ids, load.requests
        idlest = least(outstanding)
        busiest = max(outstanding)
        unbalanced = (
            busiest - outstanding[idlest] > BALANCE_ABSOLUTE and busiest > BALANCE_RELATIVE * outstanding[idlest]
        )
        replica = idlest
        if len(ids) and not unbalanced:
            matches = [_leading_run(ids, sent) for sent in self._sent]
            longest = max(matches)
            if longest > MATCH_THRESHOLD * len(ids):
                # Of equally good matches the least loaded.
                replica = min((i for i, match in enumerate(matches) if match == longest), key=outstanding.__getitem__)
        self._remember(replica, request)
        return replica

    def _remember(self, replica: int, request: Request) -> None:
        sent = self._sent[replica]
        # Last block first, so that a prefix is forgotten after what follows it.
        for prefix_id in reversed(request.prefix_ids):
            sent[prefix_id] = None
            sent.move_to_end(prefix_id)
        while len(sent) * request.prefix_block_tokens > self.setting.kv_tokens:
            sent.popitem(last=False)


def _leading_run(ids: Sequence[int], known: OrderedDict[int, None]) -> int:
    for count, prefix_id in enumerate(ids):
        if prefix_id not in known:
            return count
    return len(ids)
