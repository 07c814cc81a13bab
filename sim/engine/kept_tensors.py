"""Device memory that outlives its request: leaks, and the caches that look like leaks."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from sim.engine.request import Request


class KeptTensors:
    """Tensors that are kept when a request was answered, or as time goes by.

    What is leaked is never given back. What is retained for a request is given back when `keep` others have been
    answered since; without `keep` that never comes, and it differs from a leak in that something still finds it.
    """

    def __init__(
        self,
        *,
        leak_per_request: int = 0,
        leak_per_minute: float = 0.0,
        leak_tensor: int = 1,
        retain_per_request: int = 0,
        retain_per_token: int = 0,
        keep: int | None = None,
    ) -> None:
        """All in bytes; `leak_tensor` is the size of the tensors in which bytes are leaked with time."""
        self._leak_per_request = leak_per_request
        self._leak_per_minute = leak_per_minute
        self._leak_tensor = leak_tensor
        self._retain_per_request = retain_per_request
        self._retain_per_token = retain_per_token
        self._keep = keep
        self._owed: list[int] = []  # tokens of the requests answered since the last step
        self.start(0.0)

    def start(self, now: float) -> None:
        """The process begins anew; nothing is kept, and nothing owed."""
        self.leaked = 0  # bytes
        self._since = now
        self._by_time = 0  # tensors leaked since then as time went by
        self._retained: deque[int] = deque()  # addresses
        self._owed.clear()

    def answered(self, request: Request) -> None:
        self._owed.append(request.prompt_tokens + request.output_tokens)

    def settle(self, now: float, take: Callable[[int], int], give: Callable[[int], None]) -> bool:
        """Allocate and free what was due up to now, by `take` (bytes → address) and `give`; whether there was any.

        A request's tensors are there before those of an older one go.
        """
        moved = False
        for tokens in self._owed:
            if self._leak_per_request:
                self._leak(self._leak_per_request, take)
                moved = True
            size = self._retain_per_request + self._retain_per_token * tokens
            if size:
                self._retained.append(take(size))
                moved = True
                if self._keep is not None and len(self._retained) > self._keep:
                    give(self._retained.popleft())
        self._owed.clear()
        due = int((now - self._since) / 60.0 * self._leak_per_minute) // self._leak_tensor - self._by_time
        for _ in range(due):
            self._leak(self._leak_tensor, take)
            self._by_time += 1
        return moved or due > 0

    def _leak(self, size: int, take: Callable[[int], int]) -> None:
        take(size)
        self.leaked += size
