"""How much service every tenant had, in tokens by weight: what the virtual token counter of `fair_share.py` counts.

Tokens that decode are counted as the batch counts them (`decode_batch.py`): of a tenant of whom n requests decode,
`n · step` plus a number that changes only where one of them begins or stops. So a leap gives the same counters as its
steps. A request is charged for its prompt and its first token when it is chosen, and then as its tokens come; what is
computed again after a preemption is no service and costs nothing, but for one token ahead if its client goes.
"""

from __future__ import annotations

from collections import Counter
from typing import Protocol

from sim.engine.request import Request

# Of a prompt token and of an output token: those of the evaluation of Sheng et al., "Fairness in Serving Large Language
# Models" (OSDI 2024), after the prices of OpenAI's API.
PROMPT_WEIGHT, OUTPUT_WEIGHT = 1, 2

Tenant = str | None  # None: of all requests that name none


class Steps(Protocol):
    step: int  # the one that is scheduled next


class Service:
    """Of one engine. Whoever has its batch sets `batch`."""

    batch: Steps

    def __init__(self) -> None:
        self._charged: Counter[Tenant] = Counter()
        self._decoding: Counter[Tenant] = Counter()  # requests
        self._ahead: Counter[Tenant] = Counter()  # output tokens of those, but for one a request and step
        self._waiting: Counter[Tenant] = Counter()  # requests; no zeros
        self._returning: dict[Tenant, None] = {}  # who had nobody waiting, and has
        self._chosen: set[Request] = set()  # charged, and not admitted yet
        self._last: Tenant = None  # who had the last of those who waited
        self._somebody_left = False

    def of(self, tenant: Tenant) -> int:
        """Weighted tokens, with what the tenant was lifted by."""
        tokens = self._decoding[tenant] * self.batch.step + self._ahead[tenant]
        return self._charged[tenant] + OUTPUT_WEIGHT * tokens

    @property
    def contested(self) -> bool:
        """Whether several tenants wait, so that whose turn it is may change as others decode."""
        return len(self._waiting) > 1

    # Who waits.

    def arrives(self, request: Request) -> bool:
        """Whether its tenant is back: the next step must be scheduled at the next boundary, where he is lifted."""
        back = request.tenant not in self._waiting
        if back:
            self._returning[request.tenant] = None
        self._waiting[request.tenant] += 1
        return back

    def lift(self) -> None:
        """A step is scheduled: who came back since the last one has no credit from when he asked for nothing.

        Algorithm 2 of the paper, with counters as of this instant instead of that of the arrival.
        """
        for tenant in list(self._returning):
            del self._returning[tenant]
            if tenant not in self._waiting:
                continue
            others = [self.of(other) for other in self._waiting if other != tenant and other not in self._returning]
            if others:
                least = min(others)
            elif self._somebody_left:
                least = self.of(self._last)
            else:
                continue
            self._charged[tenant] += max(0, least - self.of(tenant))

    def waits_again(self, request: Request) -> None:
        """It was preempted."""
        self._waiting[request.tenant] += 1

    def chosen(self, request: Request) -> None:
        """It will be admitted before all who wait and were not chosen."""
        if request.first_scheduled is None and request not in self._chosen:
            self._charged[request.tenant] += PROMPT_WEIGHT * request.prompt_tokens + OUTPUT_WEIGHT
            self._chosen.add(request)

    def admitted(self, request: Request) -> None:
        """`request.first_scheduled` is still as it was before."""
        self.chosen(request)
        self._chosen.discard(request)
        self._waits_no_more(request.tenant)

    def withdrawn(self, request: Request) -> None:
        """It waits no more, and is not admitted."""
        if request in self._chosen:
            self._chosen.remove(request)
            self._charged[request.tenant] -= PROMPT_WEIGHT * request.prompt_tokens + OUTPUT_WEIGHT
        self._waits_no_more(request.tenant)

    def _waits_no_more(self, tenant: Tenant) -> None:
        self._waiting[tenant] -= 1
        if not self._waiting[tenant]:
            del self._waiting[tenant]
            self._last, self._somebody_left = tenant, True

    # Who decodes.

    def starts(self, request: Request) -> None:
        """It decodes from the next step on. All its tokens so far are charged."""
        self._charged[request.tenant] -= OUTPUT_WEIGHT * max(1, request.generated)
        self._decoding[request.tenant] += 1
        self._ahead[request.tenant] += request.output_tokens - 1 - request.finish_step

    def stops(self, request: Request, finish_step: int) -> None:
        """`finish_step`: what it was; `generated` says how many tokens it has. Of who was preempted the next is charged
        too: it comes with what is computed again."""
        self._decoding[request.tenant] -= 1
        self._ahead[request.tenant] -= request.output_tokens - 1 - finish_step
        self._charged[request.tenant] += OUTPUT_WEIGHT * min(request.generated + 1, request.output_tokens)

    def delayed(self, request: Request) -> None:
        """It was left out of a step that the others ran."""
        self._ahead[request.tenant] -= 1
