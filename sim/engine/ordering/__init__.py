"""Scheduling policies: whom to admit next, and whom to preempt. One file and one entry of `ORDERINGS` each."""

from collections.abc import Callable

from sim.engine.config import EngineConfig
from sim.engine.ordering.earliest_deadline import earliest_deadline
from sim.engine.ordering.fair_share import fair_share
from sim.engine.ordering.first_come import first_come
from sim.engine.ordering.length_buckets import length_buckets
from sim.engine.ordering.priority import priority
from sim.engine.ordering.shortest_prompt import shortest_prompt
from sim.engine.ordering.waiting_queue import Ordering

# Name → what makes the order of one engine.
ORDERINGS: dict[str, Callable[[EngineConfig], Ordering]] = {
    "fcfs": first_come,
    "priority": priority,
    "shortest_prompt": shortest_prompt,
    "earliest_deadline": earliest_deadline,
    "fair_share": fair_share,
    "length_buckets": length_buckets,
}
