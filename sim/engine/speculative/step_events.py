"""What a step drafted and kept, as rows of the events table: the same of a simulated and of a real engine."""

from __future__ import annotations

from sim.engine.speculative.batch import SpeculativeBatch
from sim.results.recorder import EventRecorder


def write_step(
    events: EventRecorder, replica: int, start: float, batch: SpeculativeBatch, seconds: float | None
) -> None:
    """Of a step that began at `start` and has advanced; `seconds` is what drafting took of it, where that is known."""
    if batch.drafted or seconds is not None:
        events.append(start, replica, "drafted", seconds=seconds, amount=batch.drafted)
    if batch.accepted:
        events.append(start, replica, "accepted", amount=sum(batch.accepted.values()))
