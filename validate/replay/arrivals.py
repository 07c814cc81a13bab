"""Which request is due when: open-loop arrivals by the trace, later turns by their parent's finish."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from itertools import count
from typing import Any


class Arrivals:
    """Releases the rows of a request table by due time; of equals arrivals first, then turns as they were answered."""

    def __init__(self, rows: Iterable[dict[str, Any]]) -> None:
        self._heap: list[tuple[float, bool, int, dict[str, Any]]] = []
        self._children: dict[int, list[dict[str, Any]]] = {}
        self._turns = count()
        for row in rows:
            if row["arrival"] is not None:
                self._heap.append((row["arrival"], False, row["request_id"], row))
            else:
                self._children.setdefault(row["parent"], []).append(row)
        heapq.heapify(self._heap)

    @property
    def next_due(self) -> float | None:
        """When the next released request is due; None: nothing more, unless a parent finishes."""
        return self._heap[0][0] if self._heap else None

    def release(self, now: float) -> Iterator[tuple[float, dict[str, Any]]]:
        """(due, row) of everything due by `now`, each once; what `answered` adds meanwhile takes its place."""
        while self._heap and self._heap[0][0] <= now:
            due, _, _, row = heapq.heappop(self._heap)
            yield due, row

    def answered(self, request_id: int, time: float) -> None:
        """The user reads the answer, or the error, at `time`, thinks, and sends the next turn."""
        for row in self._children.pop(request_id, ()):
            due = time + (row.get("think_time") or 0.0)
            heapq.heappush(self._heap, (due, True, next(self._turns), row))
