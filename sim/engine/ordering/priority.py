"""Most urgent first, and the least urgent preempted (vLLM `v1/core/sched/request_queue.py`).

Whoever waits while more urgent requests keep coming waits for ever.
"""

from collections.abc import Callable

from sim.engine.config import EngineConfig
from sim.engine.ordering.keyed_queue import KeyedQueue
from sim.engine.ordering.waiting_queue import Ordering
from sim.engine.request import Request


def priority(config: EngineConfig) -> Ordering:
    return ordered_by(lambda request: -request.priority)


def ordered_by(key: Callable[[Request], float]) -> Ordering:
    """An order that is kept among the running too: the last of them is preempted."""
    last = KeyedQueue(key).place
    return Ordering(lambda: KeyedQueue(key), lambda running: max(running, key=last))
