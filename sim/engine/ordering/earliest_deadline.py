"""Earliest deadline first (Liu and Layland, JACM 1973), and of the running the one with the latest preempted.

Whoever is late keeps his place, so nobody with a deadline starves: those who come after it stand behind him. Requests
without one come when nobody with one waits, and may wait for ever.
"""

from sim.engine.config import EngineConfig
from sim.engine.ordering.priority import ordered_by
from sim.engine.ordering.waiting_queue import Ordering


def earliest_deadline(config: EngineConfig) -> Ordering:
    return ordered_by(lambda request: request.arrival + request.deadline)
