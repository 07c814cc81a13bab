"""The replica where a request costs least: blocks to prefill there, and blocks that decode there.

Dynamo's KV router (ai-dynamo/dynamo, `lib/kv-router/src/scheduling/selector/default.rs`): in blocks of the KV cache,

    cost = prefill_load_scale · max(0, prefill - credit · overlap) + decode + active_request_weight · requests

`prefill` is the prompt and what else the replica has still to prefill, without what was thought cached when it was sent
there; `overlap` what it was sent of this prompt before; `decode` the blocks of all requests that are there, and of
this one, each block once. The credit is `overlap_credit / (1 + d · excess)`, where excess is what the replica has to
prefill more than the one that has least, in prompts of this length. The least cost wins, of equals any; with a
temperature T it is a draw with weights exp(-cost / (T · (highest cost - lowest))).

What is cached is thought to be what was sent (`sent_prefixes.py`), as Dynamo does without events of the engines. A
prefill is over when the first token is out.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from math import ceil

import numpy as np

from sim.engine.request import Request
from sim.fleet.load import Load, any_with
from sim.fleet.routers.active_prefixes import ActivePrefixes
from sim.fleet.routers.router import Router, RouterSetting
from sim.fleet.routers.sent_prefixes import SentPrefixes
from sim.fleet.routing_settings import KvCostSettings


class KvCost(Router):
    def __init__(self, setting: RouterSetting) -> None:
        super().__init__(setting)
        self._options = setting.options.kv_cost or KvCostSettings()
        self._sent = SentPrefixes(setting.kv_tokens)
        self._active = ActivePrefixes()
        self._to_prefill: deque[int] = deque()  # tokens of each that was chosen for and is not known to be sent
        self._prefilling: dict[int, dict[Request, int]] = {}  # by replica, in order of place: request → tokens

    def members(self, replicas: Sequence[int]) -> None:
        self._sent.members(replicas)
        self._active.members(replicas)
        self._prefilling = {replica: self._prefilling.get(replica, {}) for replica in replicas}

    def choose(self, request: Request, load: Load) -> int:
        matches = self._sent.matches(request.prefix_ids)
        overlaps = [min(request.prompt_tokens, match * request.prefix_block_tokens) for match in matches]
        place = self._draw(self._costs(request, overlaps, load))
        self._to_prefill.append(request.prompt_tokens - overlaps[place])
        self._sent.remember(place, request)
        return place

    def sent(self, request: Request, replica: int) -> None:
        tokens = self._to_prefill.popleft()
        if replica in self._prefilling:
            self._prefilling[replica][request] = tokens
            self._active.add(replica, request)

    def ended(self, request: Request, replica: int) -> None:
        if replica in self._prefilling:
            self._prefilling[replica].pop(request, None)
            self._active.remove(replica, request)

    def _costs(self, request: Request, overlaps: Sequence[int], load: Load) -> list[float]:
        options, size = self._options, self.setting.block_size
        prefilling = [self._still_to_prefill(there) for there in self._prefilling.values()]
        least = min(prefilling)
        blocks = ceil(request.prompt_tokens / size)
        costs = []
        for tokens, overlap, active, requests in zip(
            prefilling, overlaps, self._active.tokens_with(request), load.requests, strict=True
        ):
            credit = options.overlap_credit
            if options.overlap_credit_decay:
                credit /= 1.0 + options.overlap_credit_decay * (tokens - least) / size / blocks
            prefill = max(0.0, (tokens + request.prompt_tokens - credit * overlap) / size)
            costs.append(
                options.prefill_load_scale * prefill + active / size + options.active_request_weight * requests
            )
        return costs

    def _still_to_prefill(self, prefilling: dict[Request, int]) -> int:
        """Tokens; forgets those whose first token is out, and known to be."""
        heard = self.setting.now() - self.setting.options.load_delay
        for request in [one for one in prefilling if one.first_token is not None and one.first_token <= heard]:
            del prefilling[request]
        return sum(prefilling.values())

    def _draw(self, costs: Sequence[float]) -> int:
        random, temperature = self.setting.random, self._options.temperature
        low, high = min(costs), max(costs)
        if temperature and high > low:
            weights = np.exp((low - np.array(costs)) / (temperature * (high - low)))
            return int(random.choice(len(costs), p=weights / weights.sum()))
        return any_with(low, costs, random)
