"""Which of the weights that nobody uses gives way to others. A new policy is one function and one line in `EVICTIONS`.

A policy ranks; the lowest goes first, and of equals the one that has been idle longest.
"""

from collections.abc import Callable

from sim.fleet.weights.models import Weights


def least_recently_used(weights: Weights) -> float:
    return weights.idle_since


def least_frequently_used(weights: Weights) -> float:
    """By requests since it was loaded, as a cache that forgets what it evicts can count them."""
    return weights.uses


EVICTIONS: dict[str, Callable[[Weights], float]] = {
    "lru": least_recently_used,
    "lfu": least_frequently_used,
}
