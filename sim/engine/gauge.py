"""What an engine says of itself at a moment."""

from typing import NamedTuple


class Gauge(NamedTuple):
    waiting: int  # requests in its queue
    running: int  # requests in its batch
    kv_use: float  # share of its KV blocks that requests and idle sessions hold


IDLE = Gauge(0, 0, 0.0)
