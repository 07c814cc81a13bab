"""What a router remembers of the prompts that it sent: as many tokens a replica as its KV pool holds.

It does not look into the engines. What was sent least recently is forgotten first, of a prompt its end before its
start.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from sim.engine.request import Request
from sim.fleet.routers.prefix_holders import PrefixHolders


class SentPrefixes:
    def __init__(self, kv_tokens: int) -> None:
        """`kv_tokens`: what one replica's KV pool holds."""
        self._kv_tokens = kv_tokens
        self._holders = PrefixHolders()
        self._sent: dict[int, OrderedDict[int, None]] = {}  # by replica, ids in the order in which they are forgotten
        self._replicas: list[int] = []
        self.least_of_longest = self._holders.least_of_longest
        self.matches = self._holders.matches

    def members(self, replicas: Sequence[int]) -> None:
        """From now on these, by place."""
        for replica in self._sent.keys() - set(replicas):
            self._holders.remove(replica, *self._sent.pop(replica))
        self._holders.members(replicas)
        for replica in replicas:
            self._sent.setdefault(replica, OrderedDict())
        self._replicas = list(replicas)

    def remember(self, place: int, request: Request) -> None:
        """It is sent there."""
        replica = self._replicas[place]
        sent = self._sent[replica]
        new = []
        # Last block first, so that a prefix is forgotten after what follows it.
        for prefix_id in reversed(request.prefix_ids):
            if prefix_id in sent:
                sent.move_to_end(prefix_id)
            else:
                sent[prefix_id] = None
                new.append(prefix_id)
        self._holders.add(replica, *new)
        too_many = len(sent) - self._kv_tokens // request.prefix_block_tokens
        if too_many > 0:
            self._holders.remove(replica, *[sent.popitem(last=False)[0] for _ in range(too_many)])
