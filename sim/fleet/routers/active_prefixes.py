"""How many tokens the requests on each replica hold, those of a shared prefix once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from sim.engine.request import Request
from sim.fleet.routers.prefix_holders import PrefixHolders


class ActivePrefixes:
    """Prompts alone: an output is not known before it ends. An id counts as whole, though the last may be in part."""

    def __init__(self) -> None:
        self._holders = PrefixHolders()
        self._users: dict[int, Counter[int]] = {}  # by replica: how many requests have an id
        self._tokens: dict[int, int] = {}  # by replica, in order of place

    def members(self, replicas: Sequence[int]) -> None:
        """From now on these, by place."""
        for replica in self._users.keys() - set(replicas):
            self._holders.remove(replica, *self._users.pop(replica))
        self._holders.members(replicas)
        for replica in replicas:
            self._users.setdefault(replica, Counter())
        self._tokens = {replica: self._tokens.get(replica, 0) for replica in replicas}

    def add(self, replica: int, request: Request) -> None:
        users, tokens = self._users[replica], _beyond_ids(request)
        for prefix_id in request.prefix_ids:
            users[prefix_id] += 1
            if users[prefix_id] == 1:
                self._holders.add(replica, prefix_id)
                tokens += request.prefix_block_tokens
        self._tokens[replica] += tokens

    def remove(self, replica: int, request: Request) -> None:
        """It was added there."""
        users, tokens = self._users[replica], _beyond_ids(request)
        for prefix_id in request.prefix_ids:
            users[prefix_id] -= 1
            if not users[prefix_id]:
                del users[prefix_id]
                self._holders.remove(replica, prefix_id)
                tokens += request.prefix_block_tokens
        self._tokens[replica] -= tokens

    def tokens_with(self, request: Request) -> list[int]:
        """Of each replica, by place, as if this one were there too."""
        own = len(request.prefix_ids) * request.prefix_block_tokens + _beyond_ids(request)
        return [
            tokens + own - match * request.prefix_block_tokens
            for tokens, match in zip(self._tokens.values(), self._holders.matches(request.prefix_ids), strict=True)
        ]


def _beyond_ids(request: Request) -> int:
    """Tokens of the prompt that no prefix id stands for."""
    return max(0, request.prompt_tokens - len(request.prefix_ids) * request.prefix_block_tokens)
