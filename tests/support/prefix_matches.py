"""Who has the longest start of a prompt, asked of what answers for one replica at a time."""

from collections.abc import Sequence

from sim.fleet.routers.prefix_holders import PrefixHolders
from sim.fleet.routers.sent_prefixes import SentPrefixes


def longest(told: PrefixHolders | SentPrefixes, ids: Sequence[int], replicas: int) -> tuple[int, list[int]]:
    """How many of the first ids the best replica has, and the places of all that have as many: those that are chosen
    where they have the least."""
    found = [told.least_of_longest(ids, [float(one != place) for one in range(replicas)]) for place in range(replicas)]
    (count,) = {count for count, _ in found}
    return count, [place for place, (_, chosen) in enumerate(found) if chosen == place]
