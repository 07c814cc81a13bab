"""Fair share of tenants by a virtual token counter: next is who had the least service of those who wait.

Sheng et al., "Fairness in Serving Large Language Models" (OSDI 2024). A tenant that comes back is lifted to the least
of those who wait, so that nobody saves up service. While two tenants have requests waiting their counters differ by no
more than output weight · KV tokens of the pool (lemma 4.3), where nobody is preempted and no prefix shared; so no
tenant starves, whatever the others send. Counters are of one engine, and the prefix cache makes no prompt cheaper.
"""

from __future__ import annotations

from collections import OrderedDict

from sim.engine.config import EngineConfig
from sim.engine.ordering.service import Service, Tenant
from sim.engine.ordering.waiting_queue import Ordering, last_admitted
from sim.engine.request import Request


class FairShareQueue:
    """A `WaitingQueue`: first come, first served within a tenant, preempted requests before those who came."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._of: dict[Tenant, OrderedDict[Request, int]] = {}  # each request with its ticket; none of them empty
        self._count = 0
        self._first = self._last = 0

    def push(self, request: Request) -> None:
        self._last += 1
        self._count += 1
        self._of.setdefault(request.tenant, OrderedDict())[request] = self._last

    def put_back(self, request: Request) -> None:
        self._first -= 1
        self._count += 1
        own = self._of.setdefault(request.tenant, OrderedDict())
        own[request] = self._first
        own.move_to_end(request, last=False)

    def head(self) -> Request:
        if len(self._of) == 1:
            (own,) = self._of.values()
            return next(iter(own))
        return min((next(iter(own)) for own in self._of.values()), key=self.place)

    def pop(self) -> Request:
        request = self.head()
        self.remove(request)
        self._service.chosen(request)
        return request

    def remove(self, request: Request) -> bool:
        own = self._of.get(request.tenant)
        if own is None or request not in own:
            return False
        del own[request]
        self._count -= 1
        if not own:
            del self._of[request.tenant]
        return True

    def place(self, request: Request) -> tuple[float, ...]:
        return self._service.of(request.tenant), self._of[request.tenant][request]

    def __len__(self) -> int:
        return self._count


def fair_share(config: EngineConfig) -> Ordering:
    service = Service()
    return Ordering(lambda: FairShareQueue(service), last_admitted, service)
