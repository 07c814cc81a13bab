"""Which request is due when: open-loop arrivals by the trace, later turns by their parent's finish."""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from typing import Any


class Arrivals:
    """Releases the rows of a request table in order of (due time, request id)."""

    def __init__(self, rows: Iterable[dict[str, Any]]) -> None:
        self._heap: list[tuple[float, int, dict[str, Any]]] = []
        self._children: dict[int, list[dict[str, Any]]] = {}
        for row in rows:
            if row["arrival"] is not None:
                self._heap.append((row["arrival"], row["request_id"], row))
            else:
                self._children.setdefault(row["parent"], []).append(row)
        heapq.heapify(self._heap)

    @property
    def next_due(self) -> float | None:
        """When the next released request is due; None: nothing more, unless a parent finishes."""
        return self._heap[0][0] if self._heap else None

    def release(self, now: float) -> list[tuple[float, dict[str, Any]]]:
        """(due, row) of everything due by `now`, each handed out once."""
        released = []
        while self._heap and self._heap[0][0] <= now:
            due, _, row = heapq.heappop(self._heap)
            released.append((due, row))
        return released

    def answered(self, request_id: int, time: float) -> None:
        """The user reads the answer, or the error, at `time`, thinks, and sends the next turn."""
        for row in self._children.pop(request_id, ()):
            heapq.heappush(self._heap, (time + (row.get("think_time") or 0.0), row["request_id"], row))
