"""Shortest prompt first, with ageing: `ageing` tokens off the prompt for every second that it waits.

All who wait age alike, so whose turn it is does not change with time: it is that of the least
`prompt_tokens + ageing · arrival`. A request is overtaken only by those who come within `prompt_tokens / ageing`
seconds after it. Without ageing a long prompt waits for ever while shorter ones keep coming.
"""

from sim.engine.config import EngineConfig
from sim.engine.ordering.keyed_queue import KeyedQueue
from sim.engine.ordering.waiting_queue import Ordering, last_admitted


def shortest_prompt(config: EngineConfig) -> Ordering:
    ageing = config.ageing or 0.0
    return Ordering(lambda: KeyedQueue(lambda request: request.prompt_tokens + ageing * request.arrival), last_admitted)
