"""How links are shared: max-min fair, by progressive filling (Bertsekas and Gallager, Data Networks, section 6.5.2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf
from typing import NamedTuple


class Share(NamedTuple):
    """One of `among` equal parts of `capacity` bytes/s. Kept as two numbers, so that a transfer alone or among equals
    takes exactly size × among / capacity."""

    capacity: float
    among: int

    @property
    def rate(self) -> float:
        return self.capacity / self.among

    def bytes_in(self, seconds: float) -> float:
        return seconds * self.capacity / self.among

    def seconds_for(self, size: float) -> float:
        return size * self.among / self.capacity if self.capacity > 0 else inf


NOTHING = Share(0.0, 1)


def fair_shares(paths: Sequence[tuple[Sequence[int], int]], capacity: Mapping[int, float]) -> list[Share]:
    """What a transfer of each path gets; a path is (links that it leads over, at least one; transfers on it).

    The link whose transfers would get least is full first: they get that, and what is left goes to the others. Of links
    that are full alike the lowest is taken.
    """
    left = dict(capacity)
    on = dict.fromkeys(capacity, 0)  # transfers whose share is open yet, by link
    for links, transfers in paths:
        for link in links:
            on[link] += transfers
    shares = [NOTHING] * len(paths)
    ahead = [index for index, (_, transfers) in enumerate(paths) if transfers]
    while ahead:
        full = min((link for link in on if on[link]), key=lambda link: (left[link] / on[link], link))
        share = Share(max(0.0, left[full]), on[full])
        later = []
        for index in ahead:
            links, transfers = paths[index]
            if full not in links:
                later.append(index)
                continue
            shares[index] = share
            for link in links:
                on[link] -= transfers
                left[link] -= transfers * share.rate
        ahead = later
    return shares
